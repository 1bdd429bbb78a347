//! SPDX licence expressions: names joined by OR, AND, WITH, and parentheses. The old form `A/B` means OR.

use anyhow::{Result, bail};

/// Whether the expression can be met with licences of the list.
pub(super) fn allowed(expression: &str, allow: &[String]) -> Result<bool> {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_ascii_whitespace().collect();
    let mut parser = Parser { words: &words, allow };
    let answer = parser.either()?;
    match parser.words.first() {
        None => Ok(answer),
        Some(word) => bail!("unexpected {word:?}"),
    }
}

struct Parser<'a> {
    words: &'a [&'a str],
    allow: &'a [String],
}

impl Parser<'_> {
    /// AND binds tighter than OR.
    fn either(&mut self) -> Result<bool> {
        let mut answer = self.both()?;
        while self.take("OR") {
            answer |= self.both()?;
        }
        Ok(answer)
    }

    fn both(&mut self) -> Result<bool> {
        let mut answer = self.one()?;
        while self.take("AND") {
            answer &= self.one()?;
        }
        Ok(answer)
    }

    fn one(&mut self) -> Result<bool> {
        if self.take("(") {
            let answer = self.either()?;
            if !self.take(")") {
                bail!("a parenthesis is not closed");
            }
            return Ok(answer);
        }
        let mut name = self.name()?;
        if self.take("WITH") {
            name = format!("{name} WITH {}", self.name()?);
        }
        Ok(self.allow.contains(&name))
    }

    fn name(&mut self) -> Result<String> {
        let Some((word, rest)) = self.words.split_first() else {
            bail!("it ends too early")
        };
        if matches!(*word, "OR" | "AND" | "WITH" | "(" | ")") {
            bail!("unexpected {word:?}");
        }
        self.words = rest;
        Ok((*word).to_owned())
    }

    fn take(&mut self, word: &str) -> bool {
        let there = self.words.first() == Some(&word);
        if there {
            self.words = &self.words[1..];
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let allow: Vec<String> = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"]
            .iter()
            .map(|name| (*name).to_owned())
            .collect();
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT OR GPL-3.0", true),
            ("GPL-3.0/MIT", true),
            ("MIT AND GPL-3.0", false),
            ("MIT AND ISC", true),
            ("GPL-3.0 OR MIT AND ISC", true),
            ("(GPL-3.0 OR MIT) AND GPL-3.0", false),
            ("Apache-2.0", false),
            ("Apache-2.0 WITH LLVM-exception OR Apache-2.0", true),
        ] {
            assert_eq!(allowed(expression, &allow).unwrap(), expected, "{expression}");
        }
        for broken in ["", "MIT OR", "(MIT", "MIT)", "OR MIT", "MIT ISC"] {
            assert!(allowed(broken, &allow).is_err(), "{broken}");
        }
    }
}
