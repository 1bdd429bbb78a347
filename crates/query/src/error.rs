//! Why a text is not a query.

/// A place in a query text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// Byte offset from the start.
    pub offset: usize,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Position {
    /// The position of a byte offset in `text`; an offset beyond the end is the end.
    #[must_use]
    pub fn of(text: &str, offset: usize) -> Self {
        let mut end = offset.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let before = &text[..end];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Position {
            offset: end,
            line: number(before.matches('\n').count() + 1),
            column: number(before[line_start..].chars().count() + 1),
        }
    }
}

/// A text that is not a valid query, with the range of the fault.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message} (line {}, column {})", start.line, start.column)]
pub struct QueryError {
    /// What is wrong and what was expected; no trailing period.
    pub message: String,
    /// Where the fault begins.
    pub start: Position,
    /// Where it ends; equal to `start` when it has no length.
    pub end: Position,
}

impl QueryError {
    /// An error over the bytes `range` of `text`.
    #[must_use]
    pub fn new(text: &str, range: std::ops::Range<usize>, message: impl Into<String>) -> Self {
        QueryError {
            message: message.into(),
            start: Position::of(text, range.start),
            end: Position::of(text, range.end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters() {
        let text = "a\nbü x";
        let at = |offset| {
            let Position { line, column, .. } = Position::of(text, offset);
            (line, column)
        };
        assert_eq!(
            [at(0), at(1), at(2), at(5), at(99)],
            [(1, 1), (1, 2), (2, 1), (2, 3), (2, 5)]
        );
    }

    #[test]
    fn an_error_says_where() {
        let error = QueryError::new("SELECT", 6..6, "expected a projection");
        assert_eq!(error.to_string(), "expected a projection (line 1, column 7)");
    }
}
