//! 256 MiB of scattered pages mapped, and every address learned: the engine against the kernel's MAP and GET_PA.

use anyhow::{Context, Result, ensure};
use noiommu_bench::{Group, Mark, Ratio, Row, Subject, Unit};
use serde_json::Value;

use super::{Choice, EDU, IN_A_GUEST, Scenario, UNSAFE_NOIOMMU, Variant};
use crate::project::Project;
use crate::vm::STOCK_PROGRAMS;
use crate::vm::kernel::Kernel;
use crate::vm::pack::{self, Tree};

pub(super) const SCENARIO: Scenario = Scenario {
    group: Group {
        name: "guest/map",
        what: "256 MiB of scattered pages: the engine, and the kernel's own iommufd, on the same pages",
        subjects: || vec![MAP_AND_LEARN, MAP, LEARN, UNMAP, FLOOR],
        run: IN_A_GUEST,
    },
    script: "bench-map",
    kernel: Choice::Built(Variant::Reference),
    devices: &[EDU],
    drives: &[],
    append: &[UNSAFE_NOIOMMU],
    pack,
    rows,
};

const MAP_AND_LEARN: Subject = Subject::marked(
    "guest/map/learn-all",
    "mapped, and every address learned: how many times as fast as the kernel's MAP and GET_PA",
    Unit::Ratio,
    Mark::AtLeast(5.0),
);
const MAP: Subject =
    Subject::told("guest/map/map", "of that, mapping: the engine's map learns the frames, too", Unit::Ratio);
const LEARN: Subject =
    Subject::told("guest/map/learn", "of that, asking for every address once it is mapped", Unit::Ratio);
const UNMAP: Subject = Subject::told("guest/map/unmap", "unmapping it again", Unit::Ratio);

const FLOOR: Subject = Subject::told(
    "guest/map/floor",
    "the bare calls that pin and tell frames, instead of the engine: how many times as fast as the kernel's MAP and GET_PA",
    Unit::Ratio,
);

/// The parts of a turn, as the guest tells them.
const PARTS: [&str; 3] = ["map", "learn", "unmap"];

fn pack(project: &Project, _: &Kernel, files: &mut Tree) -> Result<()> {
    let [guest, _] = STOCK_PROGRAMS;
    files.add_programs(&pack::build_static(project, &[guest])?)
}

/// The nanoseconds of each part, by round.
struct Turns([Vec<f64>; 3]);

impl Turns {
    fn of(rounds: &[Value], by: &str) -> Result<Self> {
        let part = |key: &str| {
            let time = |round: &Value| round[by][key].as_f64();
            let times: Option<Vec<f64>> = rounds.iter().map(time).collect();
            times.filter(|times| !times.is_empty()).with_context(|| format!("no times of {key} by {by}"))
        };
        let [map, learn, unmap] = PARTS;
        Ok(Self([part(map)?, part(learn)?, part(unmap)?]))
    }

    /// Mapping and learning together.
    fn known(&self) -> Vec<f64> {
        let [map, learn, _] = &self.0;
        map.iter().zip(learn).map(|(map, learn)| map + learn).collect()
    }
}

fn rows(lines: &[Value]) -> Result<Vec<Row>> {
    let [found] = lines else { anyhow::bail!("{} lines, where there is to be one", lines.len()) };
    let rounds = found["rounds"].as_array().context("no rounds")?;
    let count = |key: &str| found[key].as_f64().with_context(|| format!("no {key}"));
    let (pages, runs) = (count("pages")?, count("runs")?);
    ensure!(runs >= 0.95 * pages, "{runs} runs of {pages} pages: that is not scattered");

    let median = |times: &[f64]| Ratio::of(times).value;
    // Of both the better way is held against the other's.
    let better = |who: &str| -> Result<(Turns, &str)> {
        let of = |way: &str| Turns::of(rounds, &format!("{who}_{way}"));
        let (by_page, by_run) = (of("by_page")?, of("by_run")?);
        let page = median(&by_page.known()) < median(&by_run.known());
        Ok(if page { (by_page, "one page at a time") } else { (by_run, "for contiguous runs") })
    };
    let ((engine, engine_way), (kernel, kernel_way)) = (better("engine")?, better("kernel")?);
    let row = |subject: &Subject, kernel: &[f64], engine: &[f64]| {
        let ratios: Vec<f64> = kernel.iter().zip(engine).map(|(kernel, engine)| kernel / engine).collect();
        let row = subject.ratio(Ratio::of(&ratios));
        row.part("engine, each page", median(engine) / pages)
            .part("kernel, each page", median(kernel) / pages)
    };
    let note = format!(
        "{runs} contiguous runs of {pages} pages; the engine was asked {engine_way}, the kernel {kernel_way}; each round learned the same addresses both ways"
    );
    let bare = Turns::of(rounds, "bare")?;
    let mut rows = vec![row(&MAP_AND_LEARN, &kernel.known(), &engine.known()).note(note)];
    for ((subject, kernel), engine) in [MAP, LEARN, UNMAP].iter().zip(&kernel.0).zip(&engine.0) {
        rows.push(row(subject, kernel, engine));
    }
    let ratios: Vec<f64> =
        kernel.known().iter().zip(&bare.known()).map(|(kernel, bare)| kernel / bare).collect();
    rows.push(FLOOR.ratio(Ratio::of(&ratios)).part("bare, each page", median(&bare.known()) / pages));
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(runs: u32, by_page: u32) -> Value {
        let turn = |learn: u32| json!({"map": 10, "learn": learn, "unmap": 5});
        let round = json!({
            "engine_by_page": turn(10), "engine_by_run": turn(20),
            "kernel_by_page": turn(by_page), "kernel_by_run": turn(150), "bare": turn(0)
        });
        json!({"pages": 100, "runs": runs, "rounds": [round, round, round]})
    }

    #[test]
    fn both_are_taken_at_their_best() {
        let value =
            |line: &Value| rows(std::slice::from_ref(line)).unwrap()[0].figure.as_ref().unwrap().value;
        assert_eq!(value(&line(100, 200)), 8.0);
        assert_eq!(value(&line(100, 90)), 5.0);
    }

    #[test]
    fn memory_must_be_scattered_and_told_of() {
        assert!(rows(&[line(94, 90)]).is_err());
        assert!(rows(&[]).is_err());
        assert!(rows(&[json!({"pages": 1, "runs": 1, "rounds": []})]).is_err());
    }
}
