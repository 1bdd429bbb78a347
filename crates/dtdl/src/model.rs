//! What a model says, after its document was read.

use serde_json::Value;

use crate::dtmi::Dtmi;

/// Version of the language.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Dialect {
    /// `dtmi:dtdl:context;2`.
    V2,
    /// `dtmi:dtdl:context;3`.
    V3,
}

/// An interface: what a device, or a part of it, can do.
#[derive(Clone, PartialEq, Debug)]
pub struct Interface {
    /// Its id.
    pub id: Dtmi,
    /// The language it is written in.
    pub dialect: Dialect,
    /// Name for people, in English or whatever language comes first.
    pub display_name: Option<String>,
    /// Interfaces whose contents it has too.
    pub extends: Vec<Dtmi>,
    /// Its own contents.
    pub contents: Vec<Content>,
    /// Schemas with ids, for references.
    pub schemas: Vec<(Dtmi, Schema)>,
}

/// A member of an interface.
#[derive(Clone, PartialEq, Debug)]
pub struct Content {
    /// Its name in twins, messages and methods.
    pub name: String,
    /// Name for people.
    pub display_name: Option<String>,
    /// Semantic types, such as `Temperature`.
    pub semantic_types: Vec<String>,
    /// Unit of the value.
    pub unit: Option<String>,
    /// What it is.
    pub kind: ContentKind,
}

/// Kinds of contents.
#[derive(Clone, PartialEq, Debug)]
pub enum ContentKind {
    /// Sent by the device.
    Telemetry {
        /// Of the value.
        schema: Schema,
    },
    /// Kept in the twin.
    Property {
        /// Of the value.
        schema: Schema,
        /// Whether services may ask for a value.
        writable: bool,
    },
    /// A direct method.
    Command {
        /// Of the argument.
        request: Option<Payload>,
        /// Of the answer.
        response: Option<Payload>,
    },
    /// A part with an interface of its own.
    Component {
        /// That interface.
        schema: Dtmi,
    },
    /// A link to another twin.
    Relationship {
        /// Interface of the others, if it must be one.
        target: Option<Dtmi>,
    },
}

impl ContentKind {
    /// As the language calls it.
    #[must_use]
    pub const fn type_name(&self) -> &'static str {
        match self {
            ContentKind::Telemetry { .. } => "Telemetry",
            ContentKind::Property { .. } => "Property",
            ContentKind::Command { .. } => "Command",
            ContentKind::Component { .. } => "Component",
            ContentKind::Relationship { .. } => "Relationship",
        }
    }
}

/// Argument or answer of a command.
#[derive(Clone, PartialEq, Debug)]
pub struct Payload {
    /// Its name.
    pub name: String,
    /// Of the value.
    pub schema: Schema,
}

/// What values look like.
#[derive(Clone, PartialEq, Debug)]
pub enum Schema {
    /// A primitive value.
    Primitive(Primitive),
    /// A GeoJSON geometry.
    Geospatial(Geometry),
    /// A list.
    Array(Box<Schema>),
    /// One of some values: name and value.
    Enum(Vec<(String, Value)>),
    /// Any keys, with values of one schema.
    Map(Box<Schema>),
    /// Named members.
    Object(Vec<(String, Schema)>),
    /// A schema with an id, elsewhere in the models.
    Reference(Dtmi),
}

macro_rules! names {
    ($(#[$doc:meta])* $name:ident: $($variant:ident = $text:literal,)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[allow(missing_docs, reason = "the names are those of the language")]
        pub enum $name { $($variant),* }

        impl $name {
            /// Reads the name, or the id that stands for it in DTDL v3.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text {
                    $($text => Some($name::$variant),)*
                    _ => None,
                }
            }

            /// The name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }
    };
}

names! {
    /// Primitive schemas.
    Primitive:
    Boolean = "boolean",
    Date = "date",
    DateTime = "dateTime",
    Double = "double",
    Duration = "duration",
    Float = "float",
    Integer = "integer",
    Long = "long",
    String = "string",
    Time = "time",
}

names! {
    /// Geospatial schemas: geometries of GeoJSON (RFC 7946).
    Geometry:
    Point = "point",
    MultiPoint = "multiPoint",
    LineString = "lineString",
    MultiLineString = "multiLineString",
    Polygon = "polygon",
    MultiPolygon = "multiPolygon",
}

impl Primitive {
    /// Whether values are numbers.
    #[must_use]
    pub const fn is_numeric(self) -> bool {
        matches!(
            self,
            Primitive::Double | Primitive::Float | Primitive::Integer | Primitive::Long
        )
    }
}
