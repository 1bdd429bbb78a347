//! What a store can check of a filter: a tree of tests that are true or not, without a third value.
//!
//! NOT is pushed down to the tests (De Morgan's laws hold in three-valued logic too), so a test only has to be true
//! exactly where the expression is true, or where it is false. What a dialect cannot say is left out of a conjunction
//! and makes the plan inexact: it then lets more rows through, and the caller asks [`super::matches`] again. Every
//! dialect uses the same tree.

use holdfast_model::Timestamp;

use super::ast::{CompareOp, Expr, Literal, Path, TextTest, TypeTest};
use super::evaluate;
use super::row::Row;

/// A test of one row; true or not.
#[derive(Clone, PartialEq, Debug)]
pub enum Test {
    /// The comparison of a place with a constant is true. Never with [`Literal::Undefined`].
    Compare {
        /// Place.
        path: Path,
        /// Operator.
        op: CompareOp,
        /// Constant.
        literal: Literal,
    },
    /// A time of the hub's own stands in this relation to a time.
    CompareTime {
        /// Place, of a time.
        path: Path,
        /// Operator.
        op: CompareOp,
        /// The other time.
        time: Timestamp,
    },
    /// The comparison of two places is true.
    ComparePaths {
        /// Left place.
        left: Path,
        /// Operator.
        op: CompareOp,
        /// Right place.
        right: Path,
    },
    /// The value is a primitive and one of the list, or if `negated` none of it.
    In {
        /// Place.
        path: Path,
        /// Constants.
        list: Vec<Literal>,
        /// NIN.
        negated: bool,
    },
    /// Something stands at the place; if `negated`, nothing does.
    Defined {
        /// Place.
        path: Path,
        /// Opposite.
        negated: bool,
    },
    /// The value is of the type; if `negated`, it is not, or there is none.
    Type {
        /// Place.
        path: Path,
        /// Type.
        test: TypeTest,
        /// Opposite.
        negated: bool,
    },
    /// The value is a text and passes; if `negated`, it is a text and fails.
    Text {
        /// Place.
        path: Path,
        /// Test.
        test: TextTest,
        /// The part looked for.
        part: String,
        /// Opposite.
        negated: bool,
    },
    /// The value is an array that holds the constant; if `negated`, an array that does not.
    ArrayContains {
        /// Place.
        path: Path,
        /// Constant.
        value: Literal,
        /// Opposite.
        negated: bool,
    },
    /// The value is this boolean.
    Is {
        /// Place.
        path: Path,
        /// Which one.
        wanted: bool,
    },
}

/// Tests joined by AND and OR.
#[derive(Clone, PartialEq, Debug)]
pub enum Predicate {
    /// Every row, or none.
    Constant(bool),
    /// All.
    And(Vec<Predicate>),
    /// One.
    Or(Vec<Predicate>),
    /// A test.
    Test(Test),
}

/// What a store checks of a filter.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// Lets every row through that the filter keeps.
    pub predicate: Predicate,
    /// Whether it lets no other row through.
    pub exact: bool,
}

impl Plan {
    /// The plan of a filter for a store that can say the tests of which `can` is true.
    #[must_use]
    pub fn of(filter: Option<&Expr>, can: &dyn Fn(&Test) -> bool) -> Self {
        let Some(filter) = filter else {
            return Plan {
                predicate: Predicate::Constant(true),
                exact: true,
            };
        };
        let mut planner = Planner { can, exact: true };
        let predicate = planner.plan(filter, true).unwrap_or(Predicate::Constant(true));
        Plan {
            predicate,
            exact: planner.exact,
        }
    }

    /// The tests that every row must pass.
    #[must_use]
    pub fn conjuncts(&self) -> Vec<&Test> {
        match &self.predicate {
            Predicate::Test(test) => vec![test],
            Predicate::And(terms) => terms
                .iter()
                .filter_map(|term| match term {
                    Predicate::Test(test) => Some(test),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

struct Planner<'c> {
    can: &'c dyn Fn(&Test) -> bool,
    exact: bool,
}

/// For constants: a row without anything.
struct NoRow;

impl Row for NoRow {
    fn get(&self, _: &Path) -> Option<std::borrow::Cow<'_, serde_json::Value>> {
        None
    }
}

impl Planner<'_> {
    /// What is true where `expr` is `wanted`; `None` if that cannot be said at all.
    fn plan(&mut self, expr: &Expr, wanted: bool) -> Option<Predicate> {
        match expr {
            Expr::Not(inner) => self.plan(inner, !wanted),
            Expr::And(terms) | Expr::Or(terms) => {
                if matches!(expr, Expr::And(_)) == wanted {
                    self.all(terms, wanted)
                } else {
                    self.any(terms, wanted)
                }
            }
            _ => self.leaf(expr, wanted),
        }
    }

    fn all(&mut self, terms: &[Expr], wanted: bool) -> Option<Predicate> {
        let mut said = Vec::new();
        for term in terms {
            match self.plan(term, wanted) {
                Some(Predicate::Constant(true)) | None => {}
                Some(Predicate::Constant(false)) => return Some(Predicate::Constant(false)),
                Some(Predicate::And(inner)) => said.extend(inner),
                Some(other) => said.push(other),
            }
        }
        Some(match said.len() {
            0 => Predicate::Constant(true),
            1 => said.remove(0),
            _ => Predicate::And(said),
        })
    }

    fn any(&mut self, terms: &[Expr], wanted: bool) -> Option<Predicate> {
        let mut said = Vec::new();
        for term in terms {
            match self.plan(term, wanted)? {
                Predicate::Constant(false) => {}
                Predicate::Constant(true) => return Some(Predicate::Constant(true)),
                Predicate::Or(inner) => said.extend(inner),
                other => said.push(other),
            }
        }
        Some(match said.len() {
            0 => Predicate::Constant(false),
            1 => said.remove(0),
            _ => Predicate::Or(said),
        })
    }

    fn leaf(&mut self, expr: &Expr, wanted: bool) -> Option<Predicate> {
        let predicate = leaf(expr, wanted).filter(|predicate| self.sayable(predicate));
        if predicate.is_none() {
            self.exact = false;
        }
        predicate
    }

    fn sayable(&self, predicate: &Predicate) -> bool {
        match predicate {
            Predicate::Constant(_) => true,
            Predicate::And(terms) | Predicate::Or(terms) => terms.iter().all(|term| self.sayable(term)),
            Predicate::Test(test) => (self.can)(test),
        }
    }
}

/// What is true where an expression without AND, OR and NOT is `wanted`.
fn leaf(expr: &Expr, wanted: bool) -> Option<Predicate> {
    let mut constant = true;
    expr.visit_paths(&mut |_| constant = false);
    if constant {
        return Some(Predicate::Constant(evaluate::truth(expr, &NoRow) == Some(wanted)));
    }
    let negated = !wanted;
    Some(match expr {
        Expr::Compare { op, left, right } => {
            let op = if wanted { *op } else { op.negated() };
            match (&**left, &**right) {
                (Expr::Path(path), Expr::Literal(literal)) => compare(path, op, literal)?,
                (Expr::Literal(literal), Expr::Path(path)) => compare(path, op.swapped(), literal)?,
                (Expr::Path(left), Expr::Path(right)) if !left.is_time() && !right.is_time() => {
                    Predicate::Test(Test::ComparePaths {
                        left: left.clone(),
                        op,
                        right: right.clone(),
                    })
                }
                _ => return None,
            }
        }
        Expr::In {
            value,
            list,
            negated: nin,
        } => {
            let Expr::Path(path) = &**value else { return None };
            is_in(path, list, *nin != negated)?
        }
        Expr::IsDefined(path) => Predicate::Test(Test::Defined {
            path: path.clone(),
            negated,
        }),
        Expr::IsType(test, inner) => {
            let Expr::Path(path) = &**inner else { return None };
            Predicate::Test(Test::Type {
                path: path.clone(),
                test: *test,
                negated,
            })
        }
        Expr::Text { test, text, part } => {
            let (Expr::Path(path), Expr::Literal(part)) = (&**text, &**part) else {
                return None;
            };
            let Literal::String(part) = part else {
                return Some(Predicate::Constant(false));
            };
            Predicate::Test(Test::Text {
                path: path.clone(),
                test: *test,
                part: part.clone(),
                negated,
            })
        }
        Expr::ArrayContains { array, value } => {
            let Expr::Literal(value) = &**value else {
                return None;
            };
            if *value == Literal::Undefined {
                return Some(Predicate::Constant(false));
            }
            Predicate::Test(Test::ArrayContains {
                path: array.clone(),
                value: value.clone(),
                negated,
            })
        }
        Expr::Path(path) => Predicate::Test(Test::Is {
            path: path.clone(),
            wanted,
        }),
        // A sum is no boolean.
        Expr::Arithmetic { .. } | Expr::Negate(_) => Predicate::Constant(false),
        Expr::Not(_) | Expr::And(_) | Expr::Or(_) | Expr::Literal(_) => return None,
    })
}

fn compare(path: &Path, op: CompareOp, literal: &Literal) -> Option<Predicate> {
    if *literal == Literal::Undefined {
        return Some(Predicate::Constant(false));
    }
    if let (true, Literal::String(text)) = (path.is_time(), literal) {
        return Some(Predicate::Test(Test::CompareTime {
            path: path.clone(),
            op,
            time: evaluate::date(text)?,
        }));
    }
    Some(Predicate::Test(Test::Compare {
        path: path.clone(),
        op,
        literal: literal.clone(),
    }))
}

fn is_in(path: &Path, list: &[Literal], negated: bool) -> Option<Predicate> {
    if !path.is_time() {
        return Some(Predicate::Test(Test::In {
            path: path.clone(),
            list: list
                .iter()
                .filter(|literal| **literal != Literal::Undefined)
                .cloned()
                .collect(),
            negated,
        }));
    }
    let op = if negated {
        CompareOp::NotEqual
    } else {
        CompareOp::Equal
    };
    let mut terms = Vec::new();
    for literal in list {
        // Anything but a text equals no time.
        if let Literal::String(_) = literal {
            terms.push(compare(path, op, literal)?);
        }
    }
    Some(match (terms.is_empty(), negated) {
        (true, false) => Predicate::Constant(false),
        (true, true) => Predicate::Test(Test::Defined {
            path: path.clone(),
            negated: false,
        }),
        (false, false) => Predicate::Or(terms),
        (false, true) => Predicate::And(terms),
    })
}
