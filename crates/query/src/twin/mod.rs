//! Queries over twins, modules and jobs, and target conditions (languages.md section 1).
