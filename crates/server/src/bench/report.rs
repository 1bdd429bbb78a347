//! What a measurement found: a table for people, JSON for scripts, the same numbers in both.

use std::thread;

use serde_json::{Map, Value, json};

use super::histogram::Histogram;
use crate::cli::output::{self, Format};

/// What a number counts; decides how it is printed for people. JSON has the plain number in the unit of its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    /// A number of things, or of things per second.
    Count,
    /// CPU cores in use, on average.
    Cores,
    /// Milliseconds.
    Milliseconds,
    /// Bytes.
    Bytes,
    /// Mebibytes.
    Mebibytes,
    /// Percent.
    Percent,
}

/// One number.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Figure {
    /// Member of the JSON object.
    pub(crate) key: &'static str,
    /// Row of the table.
    pub(crate) label: &'static str,
    pub(crate) unit: Unit,
    pub(crate) value: f64,
}

/// The numbers of one server.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) figures: Vec<Figure>,
}

impl Subject {
    pub(crate) fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Subject {
            name: name.into(),
            version: version.into(),
            figures: Vec::new(),
        }
    }

    /// Adds a number.
    pub(crate) fn add(&mut self, key: &'static str, label: &'static str, unit: Unit, value: f64) {
        self.figures.push(Figure {
            key,
            label,
            unit,
            value,
        });
    }

    /// Adds percentiles of durations in nanoseconds.
    pub(crate) fn add_latency(&mut self, latency: &Histogram) {
        let ms = |ns: u64| ns as f64 / 1e6;
        for (key, label, percent) in [
            ("latencyP50Ms", "latency p50", 50.0),
            ("latencyP99Ms", "latency p99", 99.0),
            ("latencyP999Ms", "latency p99.9", 99.9),
        ] {
            self.add(key, label, Unit::Milliseconds, ms(latency.percentile(percent)));
        }
        self.add(
            "latencyMaxMs",
            "latency max",
            Unit::Milliseconds,
            ms(latency.max()),
        );
    }

    /// The median of every figure over several rounds, each of which has the same figures.
    pub(crate) fn median(rounds: &[Subject]) -> Subject {
        let Some(first) = rounds.first() else {
            return Subject::default();
        };
        let mut median = first.clone();
        for (index, figure) in median.figures.iter_mut().enumerate() {
            let mut values: Vec<f64> = rounds
                .iter()
                .filter_map(|round| Some(round.figures.get(index)?.value))
                .collect();
            values.sort_by(f64::total_cmp);
            let middle = values.len() / 2;
            figure.value = if values.len().is_multiple_of(2) {
                f64::midpoint(values[middle - 1], values[middle])
            } else {
                values[middle]
            };
        }
        median
    }

    fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("name".to_owned(), json!(self.name));
        object.insert("version".to_owned(), json!(self.version));
        for figure in &self.figures {
            object.insert(figure.key.to_owned(), json!(round(figure.value)));
        }
        Value::Object(object)
    }
}

/// A measurement's outcome.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Report {
    /// Name of the measurement.
    pub(crate) measurement: &'static str,
    /// What was asked for.
    pub(crate) parameters: Map<String, Value>,
    /// Servers, ours first.
    pub(crate) subjects: Vec<Subject>,
    /// Whether the second server is what the first is compared with; two subjects may also be two kinds of load.
    pub(crate) compared: bool,
    /// Sentences below the table.
    pub(crate) notes: Vec<String>,
}

impl Report {
    pub(crate) fn new(measurement: &'static str, parameters: Value) -> Self {
        let parameters = match parameters {
            Value::Object(parameters) => parameters,
            _ => Map::new(),
        };
        Report {
            measurement,
            parameters,
            ..Report::default()
        }
    }

    /// Prints it on standard output.
    pub(crate) fn print(&self, format: Format) -> anyhow::Result<()> {
        if format == Format::Json {
            return output::json(&self.to_json());
        }
        output::line(&self.title())?;
        let (rows, columns) = self.rows();
        let columns: Vec<(&str, &str)> = columns
            .iter()
            .map(|(title, path)| (title.as_str(), path.as_str()))
            .collect();
        Format::Table.list(&rows, &columns)?;
        for note in &self.notes {
            output::line(&format!("note: {note}"))?;
        }
        Ok(())
    }

    pub(crate) fn to_json(&self) -> Value {
        let results: Vec<Value> = self.subjects.iter().map(Subject::to_json).collect();
        let mut object = json!({
            "measurement": self.measurement,
            "parameters": self.parameters,
            "machine": { "cores": cores(), "kernel": kernel() },
            "results": results,
            "notes": self.notes,
        });
        if let ([ours, theirs], true) = (self.subjects.as_slice(), self.compared) {
            let ratios: Map<String, Value> = ours
                .figures
                .iter()
                .filter_map(|figure| Some((figure.key.to_owned(), json!(round(ratio(figure, theirs)?)))))
                .collect();
            object["ratios"] = Value::Object(ratios);
        }
        object
    }

    fn title(&self) -> String {
        let parameters: Vec<String> = self
            .parameters
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| format!("{name} {}", value.to_string().trim_matches('"')))
            .collect();
        let mut versions: Vec<&str> = self
            .subjects
            .iter()
            .map(|subject| subject.version.as_str())
            .collect();
        versions.dedup();
        format!(
            "{}: {}\n{}; {} cores, {}\n",
            self.measurement,
            parameters.join(", "),
            versions.join(" and "),
            cores(),
            kernel()
        )
    }

    /// Rows of the table, and its columns as title and path in a row.
    fn rows(&self) -> (Vec<Value>, Vec<(String, String)>) {
        let mut columns = vec![("measure".to_owned(), "/measure".to_owned())];
        let named = self.subjects.iter().enumerate();
        columns.extend(named.map(|(index, subject)| (subject.name.clone(), format!("/{index}"))));
        let compared = self.compared && self.subjects.len() == 2;
        if compared {
            columns.push(("ratio".to_owned(), "/ratio".to_owned()));
        }
        let figures = self.subjects.first().map_or(&[][..], |subject| &subject.figures);
        let rows = figures.iter().map(|figure| {
            let mut row = json!({ "measure": figure.label });
            for (index, subject) in self.subjects.iter().enumerate() {
                let other = subject.figures.iter().find(|other| other.key == figure.key);
                row[index.to_string()] = json!(other.map(|other| show(other.unit, other.value)));
            }
            if compared {
                row["ratio"] = json!(ratio(figure, &self.subjects[1]).map(|ratio| format!("{ratio:.2} x")));
            }
            row
        });
        (rows.collect(), columns)
    }
}

fn ratio(figure: &Figure, theirs: &Subject) -> Option<f64> {
    let other = theirs.figures.iter().find(|other| other.key == figure.key)?;
    (other.value != 0.0).then(|| figure.value / other.value)
}

/// Four digits after the point say all that a measurement knows.
fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn show(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Count => thousands(value),
        Unit::Bytes => format!("{} B", thousands(value)),
        Unit::Mebibytes => format!("{value:.1} MiB"),
        Unit::Cores => format!("{value:.2}"),
        Unit::Percent => format!("{value:.1} %"),
        Unit::Milliseconds if value < 10.0 => format!("{value:.3} ms"),
        Unit::Milliseconds => format!("{value:.1} ms"),
    }
}

/// `1234567` as `1,234,567`.
fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < -0.5 { format!("-{text}") } else { text }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn kernel() -> String {
    let uname = rustix::system::uname();
    format!(
        "{} {}",
        uname.sysname().to_string_lossy(),
        uname.release().to_string_lossy()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(name: &str, rate: f64, memory: f64) -> Subject {
        let mut subject = Subject::new(name, format!("{name} 1"));
        subject.add("rate", "rate", Unit::Count, rate);
        subject.add("rssMib", "memory", Unit::Mebibytes, memory);
        subject
    }

    #[test]
    fn numbers_are_readable() {
        for (unit, value, text) in [
            (Unit::Count, 0.0, "0"),
            (Unit::Count, 999.6, "1,000"),
            (Unit::Count, 1_234_567.2, "1,234,567"),
            (Unit::Bytes, -1_024.0, "-1,024 B"),
            (Unit::Milliseconds, 0.1234, "0.123 ms"),
            (Unit::Milliseconds, 123.4, "123.4 ms"),
            (Unit::Cores, 1.0, "1.00"),
        ] {
            assert_eq!(show(unit, value), text);
        }
    }

    #[test]
    fn the_median_is_taken_figure_by_figure() {
        let rounds = [
            subject("a", 3.0, 10.0),
            subject("a", 1.0, 30.0),
            subject("a", 2.0, 20.0),
        ];
        assert_eq!(Subject::median(&rounds), subject("a", 2.0, 20.0));
        assert_eq!(Subject::median(&rounds[..2]), subject("a", 2.0, 20.0));
        assert_eq!(Subject::median(&[]), Subject::default());
    }

    #[test]
    fn two_servers_are_compared() {
        let mut report = Report::new("compare", json!({ "connections": 200, "rate": null }));
        report.subjects = vec![subject("ours", 30.0, 5.0), subject("theirs", 10.0, 0.0)];
        assert_eq!(report.to_json().get("ratios"), None, "two kinds of load");
        report.compared = true;
        let json = report.to_json();
        assert_eq!(json["results"][0]["rate"], 30.0);
        assert_eq!(json["results"][1]["name"], "theirs");
        assert_eq!(json["ratios"]["rate"], 3.0);
        // Nothing is infinitely better.
        assert_eq!(json["ratios"].get("rssMib"), None);
        let (rows, columns) = report.rows();
        assert_eq!(columns.len(), 4);
        assert_eq!(
            (rows[0]["0"].as_str(), rows[0]["ratio"].as_str()),
            (Some("30"), Some("3.00 x"))
        );
        assert!(
            report
                .title()
                .starts_with("compare: connections 200\nours 1 and theirs 1; "),
            "{}",
            report.title()
        );
    }

    #[test]
    fn one_server_has_no_ratios() {
        let mut report = Report::new("idle", json!({}));
        report.subjects = vec![subject("ours", 30.0, 5.0)];
        assert_eq!(report.to_json().get("ratios"), None);
        assert_eq!(report.rows().1.len(), 2);
    }
}
