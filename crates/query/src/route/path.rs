//! Paths into a message body or a twin (languages.md 2.3).

use serde_json::Value as Json;

use crate::value::Value;

/// `a.b[1].c`: names, each with at most one index. Compared exactly.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Step {
    name: String,
    index: Option<usize>,
}

impl JsonPath {
    /// Reads a path. `None` when it is none: an empty name, an index without a name, a range, a second index.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let steps: Option<Vec<Step>> = text.split('.').map(Step::parse).collect();
        steps.map(|steps| JsonPath { steps })
    }

    /// The JSON at the path; `None` when there is nothing.
    #[must_use]
    pub fn find<'a>(&self, root: &'a Json) -> Option<&'a Json> {
        let mut at = root;
        for step in &self.steps {
            at = at.get(&step.name)?;
            if let Some(index) = step.index {
                at = at.get(index)?;
            }
        }
        Some(at)
    }

    /// The value at the path; undefined when there is nothing.
    #[must_use]
    pub fn value<'a>(&self, root: &'a Json) -> Value<'a> {
        self.find(root).map_or(Value::Undefined, Value::from)
    }

    /// The first name.
    #[must_use]
    pub fn first(&self) -> &str {
        &self.steps[0].name
    }
}

impl Step {
    fn parse(text: &str) -> Option<Self> {
        let (name, index) = match text.split_once('[') {
            None => (text, None),
            Some((name, index)) => (name, Some(index.strip_suffix(']')?.parse().ok()?)),
        };
        let named = !name.is_empty() && !name.contains(']');
        named.then(|| Step {
            name: name.to_owned(),
            index,
        })
    }
}

impl std::fmt::Display for JsonPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, step) in self.steps.iter().enumerate() {
            let dot = if at == 0 { "" } else { "." };
            write!(f, "{dot}{}", step.name)?;
            if let Some(index) = step.index {
                write!(f, "[{index}]")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_are_names_with_one_index_each() {
        for good in ["a", "a.b", "a[0]", "a-b.c[12].d", "$x"] {
            assert_eq!(
                JsonPath::parse(good).map(|path| path.to_string()).as_deref(),
                Some(good)
            );
        }
        for bad in [
            "", ".", "a.", ".a", "[0]", "a[]", "a[1:2]", "a[0][1]", "a[-1]", "a]", "a[0]+1", "a[*]",
        ] {
            assert_eq!(JsonPath::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn values_are_found() {
        let body = json!({"a": {"b": [1, {"c": "x"}]}, "n": null});
        let at = |path: &str| JsonPath::parse(path).expect("a path").value(&body);
        assert_eq!(at("a.b[0]"), Value::Number(1.0));
        assert_eq!(at("a.b[1].c"), Value::String("x".into()));
        assert_eq!(at("n"), Value::Null);
        assert_eq!((at("a"), at("a.b")), (Value::Object, Value::Array));
        for missing in ["A", "a.c", "a.b[2]", "n.x", "a[0]"] {
            assert_eq!(at(missing), Value::Undefined, "{missing}");
        }
    }
}
