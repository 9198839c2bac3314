//! All that is measured, in groups.

use std::path::PathBuf;

use crate::row::{Row, Subject};
use crate::{areas, kernel_calls, lookup, table_memory};

/// How to measure.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Fewer rounds and less memory: the whole suite in less than a minute.
    pub short: bool,
    /// Only the rows whose names begin with one of these; all where there is none.
    pub only: Vec<String>,
    /// The program `noiommu`, for rows that start it anew; those are not measured without it.
    pub program: Option<PathBuf>,
}

impl Settings {
    /// Whether a row of this name is wanted.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.starts_with(only.as_str()))
    }

    /// One number for short runs, another for long ones.
    #[must_use]
    pub fn choose<T>(&self, short: T, long: T) -> T {
        if self.short { short } else { long }
    }
}

/// Rows that are measured together.
#[derive(Clone, Copy)]
pub struct Group {
    /// What the names of its rows begin with.
    pub name: &'static str,
    /// What they are about, a title.
    pub what: &'static str,
    /// Everything that it measures.
    pub subjects: fn() -> Vec<Subject>,
    /// Measures what is wanted, and hands over each row when it is ready.
    pub run: fn(&Settings, &mut dyn FnMut(Row)),
}

/// The groups, in the order in which they run.
pub const GROUPS: &[Group] = &[
    lookup::VIEW,
    lookup::ADDRESS,
    lookup::RUN,
    lookup::THREADS,
    kernel_calls::MAP,
    kernel_calls::FIRST,
    areas::AREAS,
    table_memory::MEMORY,
];

/// How far a run is.
#[derive(Clone, Debug)]
pub struct Progress<'a> {
    /// Rows ready.
    pub done: usize,
    /// Rows in all.
    pub total: usize,
    /// What is being measured.
    pub what: &'a str,
}

/// The subjects that the settings ask for, by group; groups without any are left out.
#[must_use]
pub fn wanted<'a>(groups: &'a [Group], settings: &Settings) -> Vec<(&'a Group, Vec<Subject>)> {
    let wanted = groups.iter().map(|group| {
        let mut subjects = (group.subjects)();
        subjects.retain(|subject| settings.wants(&subject.name));
        (group, subjects)
    });
    wanted.filter(|(_, subjects)| !subjects.is_empty()).collect()
}

/// Runs what is wanted of `groups`, and answers all rows by group. A row that its group owed and did not hand over is there, too,
/// as one that was not measured.
pub fn run<'a>(
    groups: &'a [Group],
    settings: &Settings,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Vec<(&'a Group, Vec<Row>)> {
    let wanted = wanted(groups, settings);
    let total = wanted.iter().map(|(_, subjects)| subjects.len()).sum();
    let mut done = 0;
    let mut all = Vec::new();
    for (group, subjects) in wanted {
        let mut rows: Vec<Row> = Vec::new();
        progress(Progress { done, total, what: group.what });
        (group.run)(settings, &mut |row| {
            if settings.wants(&row.subject.name) {
                done += 1;
                progress(Progress { done, total, what: group.what });
                rows.push(row);
            }
        });
        for subject in subjects {
            if !rows.iter().any(|row| row.subject.name == subject.name) {
                done += 1;
                rows.push(subject.not_measured("its group has not told"));
            }
        }
        all.push((group, rows));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{Mark, Unit};

    const ONE: Subject = Subject::marked("g/one", "", Unit::Ratio, Mark::AtMost(1.0));
    const TWO: Subject = Subject::told("g/two", "", Unit::Bytes);
    const G: Group =
        Group { name: "g", what: "G", subjects: || vec![ONE, TWO], run: |_, sink| sink(ONE.row(0.5, 0.0)) };

    #[test]
    fn what_is_owed_is_told() {
        let all = run(&[G], &Settings::default(), &mut |_| {});
        let rows = &all[0].1;
        assert_eq!(rows.iter().map(|row| row.subject.name.as_ref()).collect::<Vec<_>>(), ["g/one", "g/two"]);
        assert!(rows[0].is_measured() && !rows[1].is_measured());
    }

    #[test]
    fn names_choose() {
        let settings = |only: &[&str]| Settings {
            only: only.iter().map(|&only| only.to_owned()).collect(),
            ..Settings::default()
        };
        for (only, name, wants) in [
            (&[][..], "map/4k", true),
            (&["map"], "map/4k", true),
            (&["map/4k"], "map", false),
            (&["map/4k"], "map/2m", false),
            (&["unmap", "map/2m"], "map/2m", true),
        ] {
            assert_eq!(settings(only).wants(name), wants, "{only:?} {name}");
        }
        let rows = run(&[G], &settings(&["g/two"]), &mut |_| {});
        assert_eq!((rows[0].1.len(), rows[0].1[0].subject.name.as_ref()), (1, "g/two"));
        assert!(run(&[G], &settings(&["h"]), &mut |_| {}).is_empty());
    }

    /// Names are what scripts go by, and what `--only` takes.
    #[test]
    fn every_row_has_a_name_of_its_own() {
        let mut names = Vec::new();
        for group in GROUPS {
            for subject in (group.subjects)() {
                assert!(subject.name.starts_with(group.name), "{}", subject.name);
                assert!(!subject.what.is_empty() && !subject.name.contains(' '), "{}", subject.name);
                assert!(!names.contains(&subject.name), "{} twice", subject.name);
                names.push(subject.name);
            }
        }
    }
}
