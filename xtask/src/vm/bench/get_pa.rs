//! GET_PA of one page: one program of the uAPI, answered by the kernel's ioctl and through the preload library.

use anyhow::{Context, Result};
use noiommu_bench::{Group, Mark, Ratio, Row, Subject, Unit};
use serde_json::Value;

use super::{EDU, IN_A_GUEST, Scenario, numbers};
use crate::project::Project;
use crate::vm::PRELOAD;
use crate::vm::pack::{self, Tree};

pub(super) const SCENARIO: Scenario = Scenario {
    group: Group {
        name: "guest/get-pa",
        what: "IOMMU_IOAS_NOIOMMU_GET_PA through the preload library",
        subjects: || vec![ONE_PAGE],
        run: IN_A_GUEST,
    },
    script: "bench-get-pa",
    devices: &[EDU],
    drives: &[],
    pack,
    rows,
};

const ONE_PAGE: Subject = Subject::marked(
    "guest/get-pa/one-page",
    "GET_PA of one page through the preload library, to the kernel's own ioctl of the same program",
    Unit::Ratio,
    Mark::AtMost(0.25),
);

fn pack(project: &Project, files: &mut Tree) -> Result<()> {
    let [library, program] = PRELOAD;
    files.add_libraries(&pack::build(project, &[library])?)?;
    files.add_programs(&pack::build(project, &[program])?)?;
    files.add_programs(&[pack::compile_c(project, "get_pa_cost")?])
}

/// Of each turn, the ratio of the two processes' medians; the row is the median turn.
fn rows(turns: &[Value]) -> Result<Vec<Row>> {
    let medians = |by: &str, key: &str| {
        let median = |turn: &Value| numbers(&turn[by][key]).map(|times| Ratio::of(&times).value);
        turns.iter().map(median).collect::<Result<Vec<f64>>>().with_context(|| format!("{key} by {by}"))
    };
    let (kernel, preload) = (medians("kernel", "get_pa")?, medians("preload", "get_pa")?);
    let ratios: Vec<f64> = preload.iter().zip(&kernel).map(|(preload, kernel)| preload / kernel).collect();
    let nothing = medians("kernel", "syscall")?;
    let row = ONE_PAGE
        .ratio(Ratio::of(&ratios))
        .part("preload", Ratio::of(&preload).value)
        .part("kernel", Ratio::of(&kernel).value)
        .part("a system call that does nothing", Ratio::of(&nothing).value);
    Ok(vec![row])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_row_is_the_median_turn() {
        let times = |time: f64| json!({"get_pa": [time, 2.0 * time, 0.0], "syscall": [7, 7, 7]});
        let turn = |preload: f64, kernel: f64| json!({"kernel": times(kernel), "preload": times(preload)});
        let rows = rows(&[turn(2.0, 10.0), turn(30.0, 100.0), turn(1.0, 1.0)]).unwrap();
        assert_eq!(rows[0].figure.as_ref().unwrap().value, 0.3);
        assert!(rows[0].met() == Some(false) && rows[0].parts.len() == 3);
        assert!(super::rows(&[json!({"kernel": times(1.0)})]).is_err());
    }
}
