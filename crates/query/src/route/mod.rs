//! Conditions of message routes (languages.md section 2).
