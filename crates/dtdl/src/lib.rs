//! DTDL v2 and v3 (languages.md section 7): identifiers, models, values checked against models.
