//! Checked queries: every name is resolved, every function known.

use std::fmt;

/// What a query looks at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    /// Twins of devices.
    Devices,
    /// Twins of modules.
    Modules,
    /// One row for each pair of a job and a device or module.
    Jobs,
}

impl Source {
    /// As it is written after FROM.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Source::Devices => "devices",
            Source::Modules => "devices.modules",
            Source::Jobs => "devices.jobs",
        }
    }
}

macro_rules! roots {
    ($($(#[$doc:meta])* $root:ident $name:literal: $($source:ident)*;)*) => {
        /// The first member of a path: a member of the document that `SELECT *` returns.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum Root {
            $($(#[$doc])* $root,)*
        }

        impl Root {
            /// Every root.
            pub const ALL: &'static [Root] = &[$(Root::$root,)*];

            /// Its name in documents.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Root::$root => $name,)* }
            }

            /// Whether documents of `source` have it.
            #[must_use]
            pub fn is_of(self, source: Source) -> bool {
                match self { $(Root::$root => [$(Source::$source),*].contains(&source),)* }
            }
        }
    };
}

roots! {
    /// Text; always there.
    DeviceId "deviceId": Devices Modules Jobs;
    /// Text; always there for modules.
    ModuleId "moduleId": Modules Jobs;
    /// Text: entity tag of the twin.
    Etag "etag": Devices Modules;
    /// Text: entity tag of the identity.
    DeviceEtag "deviceEtag": Devices Modules;
    /// Number of the twin's version.
    Version "version": Devices Modules;
    /// `enabled` or `disabled`; of a job's row its state.
    Status "status": Devices Modules Jobs;
    /// Text; may be missing.
    StatusReason "statusReason": Devices Modules;
    /// Time.
    StatusUpdateTime "statusUpdateTime": Devices Modules;
    /// `Connected` or `Disconnected`.
    ConnectionState "connectionState": Devices Modules;
    /// Time.
    LastActivityTime "lastActivityTime": Devices Modules;
    /// Number of waiting messages.
    CloudToDeviceMessageCount "cloudToDeviceMessageCount": Devices Modules;
    /// `sas`, `selfSigned`, `certificateAuthority` or `none`.
    AuthenticationType "authenticationType": Devices Modules;
    /// Object of two thumbprints, each text or null.
    X509Thumbprint "x509Thumbprint": Devices Modules;
    /// Text; missing unless the device announced one.
    ModelId "modelId": Devices Modules;
    /// Text; may be missing.
    DeviceScope "deviceScope": Devices Modules;
    /// Array of texts.
    ParentScopes "parentScopes": Devices Modules;
    /// Object with the boolean `iotEdge`.
    Capabilities "capabilities": Devices Modules;
    /// Object.
    Tags "tags": Devices Modules;
    /// Object of both sections.
    Properties "properties": Devices Modules;
    /// Object of configurations by id, each with a `status`.
    Configurations "configurations": Devices Modules;
    /// Text.
    JobId "jobId": Jobs;
    /// `scheduleUpdateTwin` or `scheduleDeviceMethod`.
    JobType "jobType": Jobs;
    /// Time; may be missing.
    StartTimeUtc "startTimeUtc": Jobs;
    /// Time; may be missing.
    EndTimeUtc "endTimeUtc": Jobs;
    /// Time.
    CreatedDateTimeUtc "createdDateTimeUtc": Jobs;
    /// Time.
    LastUpdatedDateTimeUtc "lastUpdatedDateTimeUtc": Jobs;
    /// Object.
    Outcome "outcome": Jobs;
    /// Object.
    Error "error": Jobs;
}

impl Root {
    /// Whether its value is a time, which compares by time with a text that is a date.
    #[must_use]
    pub fn is_time(self) -> bool {
        matches!(
            self,
            Root::StatusUpdateTime
                | Root::LastActivityTime
                | Root::StartTimeUtc
                | Root::EndTimeUtc
                | Root::CreatedDateTimeUtc
                | Root::LastUpdatedDateTimeUtc
        )
    }
}

/// One step into a document.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Segment {
    /// A member of an object.
    Name(String),
    /// An element of an array, from 0.
    Index(usize),
}

/// A place in a document.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Path {
    /// The member of the document.
    pub root: Root,
    /// The way below it. Names of the hub's own members have their canonical spelling.
    pub rest: Vec<Segment>,
}

impl Path {
    /// A member of the document itself.
    #[must_use]
    pub fn root(root: Root) -> Self {
        Path {
            root,
            rest: Vec::new(),
        }
    }

    /// Whether the value is a time of the hub's own.
    #[must_use]
    pub fn is_time(&self) -> bool {
        self.rest.is_empty() && self.root.is_time()
    }

    /// The last name of the path: what a column without an alias is called.
    #[must_use]
    pub fn last_name(&self) -> &str {
        self.rest
            .iter()
            .rev()
            .find_map(|segment| match segment {
                Segment::Name(name) => Some(name.as_str()),
                Segment::Index(_) => None,
            })
            .unwrap_or(self.root.name())
    }
}

impl fmt::Display for Path {
    /// As it may be written in a query.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.root.name())?;
        for segment in &self.rest {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Name(name) if super::parse::is_plain_name(name) => write!(f, ".{name}")?,
                Segment::Name(name) => write!(f, ".[[{name}]]")?,
            }
        }
        Ok(())
    }
}

/// A constant.
#[derive(Clone, PartialEq, Debug)]
pub enum Literal {
    /// `undefined`.
    Undefined,
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A finite number.
    Number(f64),
    /// A text.
    String(String),
}

/// Comparison operators.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum CompareOp {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl CompareOp {
    /// As it is written.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            CompareOp::Equal => "=",
            CompareOp::NotEqual => "!=",
            CompareOp::Less => "<",
            CompareOp::LessEqual => "<=",
            CompareOp::Greater => ">",
            CompareOp::GreaterEqual => ">=",
        }
    }

    /// The operator that is true where this one is false, for operands that can be compared.
    #[must_use]
    pub fn negated(self) -> Self {
        match self {
            CompareOp::Equal => CompareOp::NotEqual,
            CompareOp::NotEqual => CompareOp::Equal,
            CompareOp::Less => CompareOp::GreaterEqual,
            CompareOp::LessEqual => CompareOp::Greater,
            CompareOp::Greater => CompareOp::LessEqual,
            CompareOp::GreaterEqual => CompareOp::Less,
        }
    }

    /// The operator with its operands changed about.
    #[must_use]
    pub fn swapped(self) -> Self {
        match self {
            CompareOp::Equal => CompareOp::Equal,
            CompareOp::NotEqual => CompareOp::NotEqual,
            CompareOp::Less => CompareOp::Greater,
            CompareOp::LessEqual => CompareOp::GreaterEqual,
            CompareOp::Greater => CompareOp::Less,
            CompareOp::GreaterEqual => CompareOp::LessEqual,
        }
    }

    /// Whether it holds for operands that are ordered like `ordering`.
    #[must_use]
    pub fn holds(self, ordering: std::cmp::Ordering) -> bool {
        match self {
            CompareOp::Equal => ordering.is_eq(),
            CompareOp::NotEqual => ordering.is_ne(),
            CompareOp::Less => ordering.is_lt(),
            CompareOp::LessEqual => ordering.is_le(),
            CompareOp::Greater => ordering.is_gt(),
            CompareOp::GreaterEqual => ordering.is_ge(),
        }
    }
}

/// Arithmetic operators.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ArithmeticOp {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// What a type test asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum TypeTest {
    Null,
    Bool,
    Number,
    String,
    Object,
    Array,
    /// Null, boolean, number or text.
    Primitive,
}

/// Tests of a text against another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum TextTest {
    StartsWith,
    EndsWith,
    Contains,
}

/// An expression.
#[derive(Clone, PartialEq, Debug)]
pub enum Expr {
    /// A constant.
    Literal(Literal),
    /// A value of the row.
    Path(Path),
    /// Not true.
    Not(Box<Expr>),
    /// All true; at least two.
    And(Vec<Expr>),
    /// One true; at least two.
    Or(Vec<Expr>),
    /// A comparison.
    Compare {
        /// Operator.
        op: CompareOp,
        /// Left operand.
        left: Box<Expr>,
        /// Right operand.
        right: Box<Expr>,
    },
    /// `IN`, or `NIN` if `negated`.
    In {
        /// What is looked for.
        value: Box<Expr>,
        /// Where.
        list: Vec<Literal>,
        /// NIN.
        negated: bool,
    },
    /// Arithmetic.
    Arithmetic {
        /// Operator.
        op: ArithmeticOp,
        /// Left operand.
        left: Box<Expr>,
        /// Right operand.
        right: Box<Expr>,
    },
    /// `-x`.
    Negate(Box<Expr>),
    /// `IS_DEFINED(path)`.
    IsDefined(Path),
    /// `IS_STRING(x)` and its like.
    IsType(TypeTest, Box<Expr>),
    /// `STARTSWITH(text, part)` and its like.
    Text {
        /// Which test.
        test: TextTest,
        /// The whole.
        text: Box<Expr>,
        /// The part.
        part: Box<Expr>,
    },
    /// `ARRAY_CONTAINS(path, value)`.
    ArrayContains {
        /// The array.
        array: Path,
        /// The element, a primitive.
        value: Box<Expr>,
    },
}

/// What a query returns of each row.
#[derive(Clone, PartialEq, Debug)]
pub enum Projection {
    /// `*`: the document.
    Document,
    /// Columns.
    Columns(Vec<Column>),
}

/// A column of a result.
#[derive(Clone, PartialEq, Debug)]
pub struct Column {
    /// Its key in the result.
    pub name: String,
    /// Where its value comes from.
    pub value: ColumnValue,
}

/// The value of a column.
#[derive(Clone, PartialEq, Debug)]
pub enum ColumnValue {
    /// A place in the document.
    Path(Path),
    /// A figure over all rows of a group.
    Aggregate(Aggregate),
}

/// A figure over rows.
#[derive(Clone, PartialEq, Debug)]
pub enum Aggregate {
    /// Number of rows.
    Count,
    /// Mean of the numbers.
    Avg(Path),
    /// Sum of the numbers.
    Sum(Path),
    /// Least number, else least text.
    Min(Path),
    /// Greatest text, else greatest number.
    Max(Path),
}

impl Aggregate {
    /// The place it looks at.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Aggregate::Count => None,
            Aggregate::Avg(path) | Aggregate::Sum(path) | Aggregate::Min(path) | Aggregate::Max(path) => {
                Some(path)
            }
        }
    }
}

/// A term of `ORDER BY`.
#[derive(Clone, PartialEq, Debug)]
pub struct Order {
    /// What rows are ordered by.
    pub path: Path,
    /// Greatest first.
    pub descending: bool,
}

/// What the rows of a result are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ItemType {
    /// Documents of twins.
    Twin,
    /// Objects of columns.
    Raw,
    /// Rows of jobs.
    DeviceJob,
}

/// A checked query; made by [`super::parse`].
#[derive(Clone, PartialEq, Debug)]
pub struct Select {
    /// What it looks at.
    pub source: Source,
    /// What it returns.
    pub projection: Projection,
    /// Which rows; `None` is all.
    pub filter: Option<Expr>,
    /// One row for each distinct value of these; empty without GROUP BY.
    pub group_by: Vec<Path>,
    /// Most rows of the whole result.
    pub top: Option<u64>,
    /// Order of the rows; empty is the order of the store.
    pub order_by: Vec<Order>,
    /// Tells continuation tokens of one query from those of another: a stable hash of the text.
    pub fingerprint: u64,
}

impl Select {
    /// Whether rows are figures over many documents.
    #[must_use]
    pub fn is_aggregated(&self) -> bool {
        !self.group_by.is_empty()
            || matches!(&self.projection, Projection::Columns(columns)
                if columns.iter().any(|column| matches!(column.value, ColumnValue::Aggregate(_))))
    }

    /// What its rows are.
    #[must_use]
    pub fn item_type(&self) -> ItemType {
        match (&self.projection, self.source) {
            (Projection::Document, Source::Jobs) => ItemType::DeviceJob,
            (Projection::Document, _) => ItemType::Twin,
            (Projection::Columns(_), _) => ItemType::Raw,
        }
    }
}
