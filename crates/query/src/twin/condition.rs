//! Target conditions of configurations, deployments and jobs.

use super::ast::{
    Aggregate, ArithmeticOp, Column, ColumnValue, CompareOp, Expr, Literal, Path, Projection, Root, Select,
    Source,
};
use super::evaluate;
use super::row::Row;

/// Which rows a condition keeps.
#[derive(Clone, PartialEq, Debug)]
pub enum Filter {
    /// None: the empty condition.
    None,
    /// All: `*`.
    All,
    /// Those for which it is true.
    Expr(Expr),
}

/// A checked target condition; made by [`super::parse_condition`].
#[derive(Clone, PartialEq, Debug)]
pub struct Condition {
    /// Devices or modules.
    pub source: Source,
    /// Which of them.
    pub filter: Filter,
}

impl Condition {
    /// A condition from its parts.
    #[must_use]
    pub fn new(source: Source, filter: Filter) -> Self {
        Condition { source, filter }
    }

    /// Whether it targets a row; the caller has chosen rows of its source.
    #[must_use]
    pub fn matches(&self, row: &dyn Row) -> bool {
        match &self.filter {
            Filter::None => false,
            Filter::All => true,
            Filter::Expr(expr) => evaluate::matches(expr, row),
        }
    }

    /// The query for the ids of all that it targets: columns `deviceId` and, for modules, `moduleId`; `None` for the
    /// empty condition, which targets nothing.
    #[must_use]
    pub fn ids(&self) -> Option<Select> {
        let roots: &[Root] = match self.source {
            Source::Devices => &[Root::DeviceId],
            _ => &[Root::DeviceId, Root::ModuleId],
        };
        let columns = roots.iter().map(|root| Column {
            name: root.name().to_owned(),
            value: ColumnValue::Path(Path::root(*root)),
        });
        self.select(Projection::Columns(columns.collect()))
    }

    /// The query for the documents of all that it targets; `None` for the empty condition.
    #[must_use]
    pub fn documents(&self) -> Option<Select> {
        self.select(Projection::Document)
    }

    /// The query for the number of all that it targets, as its only column; `None` for the empty condition.
    #[must_use]
    pub fn count(&self) -> Option<Select> {
        self.select(Projection::Columns(vec![Column {
            name: "count".to_owned(),
            value: ColumnValue::Aggregate(Aggregate::Count),
        }]))
    }

    fn select(&self, projection: Projection) -> Option<Select> {
        let filter = match &self.filter {
            Filter::None => return None,
            Filter::All => None,
            Filter::Expr(expr) => Some(expr.clone()),
        };
        Some(Select {
            source: self.source,
            projection,
            filter,
            group_by: Vec::new(),
            top: None,
            order_by: Vec::new(),
            fingerprint: 0,
        })
    }

    /// What the documentation of target conditions does not name (deviceId, tags and reported properties are what it
    /// names): worth a warning, not an error.
    #[must_use]
    pub fn undocumented_paths(&self) -> Vec<Path> {
        let mut paths = Vec::new();
        if let Filter::Expr(expr) = &self.filter {
            expr.visit_paths(&mut |path| {
                let reported = path.root == Root::Properties
                    && path.rest.first() == Some(&super::ast::Segment::Name("reported".into()));
                let documented =
                    reported || matches!(path.root, Root::DeviceId | Root::ModuleId | Root::Tags);
                if !documented && !paths.contains(path) {
                    paths.push(path.clone());
                }
            });
        }
        paths
    }
}

impl Expr {
    /// Calls `visit` with every path.
    pub fn visit_paths(&self, visit: &mut dyn FnMut(&Path)) {
        match self {
            Expr::Literal(_) => {}
            Expr::Path(path) | Expr::IsDefined(path) => visit(path),
            Expr::Not(inner) | Expr::Negate(inner) | Expr::IsType(_, inner) => inner.visit_paths(visit),
            Expr::And(terms) | Expr::Or(terms) => terms.iter().for_each(|term| term.visit_paths(visit)),
            Expr::Compare { left, right, .. } | Expr::Arithmetic { left, right, .. } => {
                left.visit_paths(visit);
                right.visit_paths(visit);
            }
            Expr::In { value, .. } => value.visit_paths(visit),
            Expr::Text { text, part, .. } => {
                text.visit_paths(visit);
                part.visit_paths(visit);
            }
            Expr::ArrayContains { array, value } => {
                visit(array);
                value.visit_paths(visit);
            }
        }
    }

    /// `path = 'text'`, for conditions that the hub makes itself.
    #[must_use]
    pub fn path_equals(path: Path, text: impl Into<String>) -> Self {
        Expr::Compare {
            op: CompareOp::Equal,
            left: Box::new(Expr::Path(path)),
            right: Box::new(Expr::Literal(Literal::String(text.into()))),
        }
    }
}

impl ArithmeticOp {
    /// The result, if it is finite.
    pub(super) fn apply(self, left: f64, right: f64) -> Option<f64> {
        let result = match self {
            ArithmeticOp::Add => left + right,
            ArithmeticOp::Subtract => left - right,
            ArithmeticOp::Multiply => left * right,
            ArithmeticOp::Divide => left / right,
            ArithmeticOp::Remainder => left % right,
        };
        result.is_finite().then_some(result)
    }
}
