//! For programs.

use serde_json::{Value, json as object};

use crate::row::{Mark, Row};

/// Everything, as one object: `marks`, the rows that have one to keep, and `rows`, all of them with all that is known.
#[must_use]
pub fn json(rows: &[Row]) -> Value {
    let marks = rows.iter().filter_map(|row| {
        let mark = row.subject.mark?;
        let value = row.figure.as_ref().ok().map(|figure| figure.value);
        Some(object!({ "name": row.subject.name, "value": value, "mark": mark.number(), "met": row.met() }))
    });
    object!({ "marks": marks.collect::<Vec<_>>(), "rows": rows.iter().map(row).collect::<Vec<_>>() })
}

fn row(row: &Row) -> Value {
    let figure = row.figure.as_ref().ok();
    let bound = row.subject.mark.map(|mark| match mark {
        Mark::AtMost(_) => "at most",
        Mark::AtLeast(_) => "at least",
    });
    let parts = row
        .parts
        .iter()
        .map(|part| object!({ "label": part.label, "value": part.value, "unit": part.unit.name() }));
    object!({
        "name": row.subject.name,
        "what": row.subject.what,
        "value": figure.map(|figure| figure.value),
        "unit": row.subject.unit.name(),
        "mark": row.subject.mark.map(Mark::number),
        "bound": bound,
        "met": row.met(),
        "fails": row.fails(),
        "spread": figure.map(|figure| figure.spread),
        "parts": parts.collect::<Vec<_>>(),
        "note": row.note,
        "not_measured": row.figure.as_ref().err(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{Subject, Unit};

    #[test]
    fn marks_are_there_also_when_not_measured() {
        let marked = Subject::marked("a/b", "A.", Unit::Ratio, Mark::AtMost(1.5));
        let told = Subject::told("a/c", "C.", Unit::Nanoseconds);
        let all =
            json(&[marked.row(1.25, 0.01).part("bare", 7.0), marked.not_measured("why"), told.row(3.0, 0.0)]);
        assert_eq!(
            all["marks"],
            object!([
                { "name": "a/b", "value": 1.25, "mark": 1.5, "met": true },
                { "name": "a/b", "value": null, "mark": 1.5, "met": false },
            ])
        );
        assert_eq!(all["rows"][0]["parts"], object!([{ "label": "bare", "value": 7.0, "unit": "ns" }]));
        assert_eq!(all["rows"][1]["not_measured"], "why");
        assert_eq!((&all["rows"][2]["met"], &all["rows"][2]["unit"]), (&Value::Null, &object!("ns")));
    }
}
