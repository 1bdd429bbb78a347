//! Patches of properties: objects merge, null removes.

use serde_json::{Map, Value};

/// Applies a patch to properties.
pub(crate) fn apply(properties: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, change) in patch {
        match (properties.get_mut(key), change) {
            (_, Value::Null) => {
                properties.remove(key);
            }
            (Some(Value::Object(inner)), Value::Object(change)) => apply(inner, change),
            (_, Value::Object(change)) => {
                let mut inner = Map::new();
                apply(&mut inner, change);
                properties.insert(key.clone(), Value::Object(inner));
            }
            (_, other) => {
                properties.insert(key.clone(), other.clone());
            }
        }
    }
}

/// Makes `first` do what it and then `second` do to properties that are `known`.
///
/// A member that `first` removes and `second` makes anew as an object has to lose what `known` has of it: one patch cannot
/// say "remove, then set", so each old member is removed by name.
pub(crate) fn merge(first: &mut Map<String, Value>, second: &Map<String, Value>, known: &Map<String, Value>) {
    let none = Map::new();
    for (key, change) in second {
        let known = known.get(key).and_then(Value::as_object).unwrap_or(&none);
        match (first.get_mut(key), change) {
            (Some(Value::Object(inner)), Value::Object(change)) => merge(inner, change, known),
            // Removed, or something else than an object, before.
            (Some(_), Value::Object(change)) => {
                let replaced = replacing(change, known);
                first.insert(key.clone(), Value::Object(replaced));
            }
            _ => {
                first.insert(key.clone(), change.clone());
            }
        }
    }
}

/// The patch that makes an object `known` the one that `change` makes out of nothing.
fn replacing(change: &Map<String, Value>, known: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for (key, old) in known {
        let new = match (change.get(key), old) {
            (Some(Value::Object(change)), Value::Object(old)) => Value::Object(replacing(change, old)),
            (Some(new), _) => new.clone(),
            (None, _) => Value::Null,
        };
        patch.insert(key.clone(), new);
    }
    for (key, new) in change {
        patch.entry(key.clone()).or_insert_with(|| new.clone());
    }
    patch
}

/// The patch that makes `before` into `after`.
pub(crate) fn difference(before: &Map<String, Value>, after: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, new) in after {
        match (before.get(key), new) {
            (Some(old), new) if old == new => {}
            (Some(Value::Object(old)), Value::Object(new)) => {
                patch.insert(key.clone(), Value::Object(difference(old, new)));
            }
            (_, new) => {
                patch.insert(key.clone(), new.clone());
            }
        }
    }
    patch
}

#[cfg(test)]
mod tests {
    use holdfast_store::log::sim::Random;
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(object) => object,
            _ => panic!("an object"),
        }
    }

    fn random_value(random: &mut Random, depth: usize, nulls: bool) -> Value {
        match random.below(if depth == 0 { 2 } else { 4 }) {
            0 if nulls => Value::Null,
            0 | 1 => json!(random.below(3)),
            _ => Value::Object(random_object(random, depth - 1, nulls)),
        }
    }

    fn random_object(random: &mut Random, depth: usize, nulls: bool) -> Map<String, Value> {
        (0..random.below(4))
            .map(|_| {
                let key = ["a", "b", "c"][random.below(3)].to_owned();
                (key, random_value(random, depth, nulls))
            })
            .collect()
    }

    #[test]
    fn merged_patches_do_what_they_did_one_by_one() {
        for seed in 0..20_000 {
            let mut random = Random(seed);
            let known = random_object(&mut random, 2, false);
            let (mut one_by_one, mut merged) = (known.clone(), Map::new());
            for _ in 0..4 {
                let patch = random_object(&mut random, 2, true);
                apply(&mut one_by_one, &patch);
                merge(&mut merged, &patch, &known);
            }
            let mut at_once = known.clone();
            apply(&mut at_once, &merged);
            assert_eq!(at_once, one_by_one, "seed {seed}, from {known:?} by {merged:?}");
        }
    }

    #[test]
    fn differences_lead_from_one_to_the_other() {
        for seed in 0..20_000 {
            let mut random = Random(seed);
            let before = random_object(&mut random, 2, false);
            let after = random_object(&mut random, 2, false);
            let mut patched = before.clone();
            apply(&mut patched, &difference(&before, &after));
            assert_eq!(patched, after, "seed {seed}");
        }
        assert_eq!(
            difference(&object(json!({"a": 1})), &object(json!({"a": 1}))),
            Map::new()
        );
    }
}
