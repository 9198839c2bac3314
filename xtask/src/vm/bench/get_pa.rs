//! GET_PA of one page: one program of the uAPI, answered by the kernel's ioctl and through the preload library.

use anyhow::{Context, Result};
use noiommu_bench::{Group, Mark, Ratio, Row, Subject, Unit};
use serde_json::Value;

use super::{Choice, EDU, IN_A_GUEST, Scenario, UNSAFE_NOIOMMU, Variant, numbers};
use crate::project::Project;
use crate::vm::PRELOAD;
use crate::vm::kernel::Kernel;
use crate::vm::pack::{self, Tree};

pub(super) const SCENARIO: Scenario = Scenario {
    group: Group {
        name: "guest/get-pa",
        what: "IOMMU_IOAS_NOIOMMU_GET_PA through the preload library",
        subjects: || vec![ONE_PAGE],
        run: IN_A_GUEST,
    },
    script: "bench-get-pa",
    kernel: Choice::Built(Variant::Reference),
    devices: &[EDU],
    drives: &[],
    append: &[UNSAFE_NOIOMMU],
    pack,
    rows,
};

const ONE_PAGE: Subject = Subject::marked(
    "guest/get-pa/one-page",
    "GET_PA of one page through the preload library, to the kernel's own ioctl of the same program",
    Unit::Ratio,
    Mark::AtMost(0.25),
);

fn pack(project: &Project, _: &Kernel, files: &mut Tree) -> Result<()> {
    let [library, program] = PRELOAD;
    files.add_libraries(&pack::build(project, &[library])?)?;
    files.add_programs(&pack::build(project, &[program])?)?;
    files.add_programs(&[pack::compile_c(project, "get_pa_cost")?])
}

/// One of the two processes of a turn. Its rounds time the call, and beside it a system call that does nothing.
struct Process {
    /// Nanoseconds of a call.
    call: f64,
    /// Nanoseconds of the yardstick.
    nothing: f64,
    /// How many yardsticks a call takes, round by round: the median.
    relative: f64,
}

impl Process {
    fn of(told: &Value) -> Result<Self> {
        let (calls, nothing) = (numbers(&told["get_pa"])?, numbers(&told["syscall"])?);
        let relative: Vec<f64> = calls.iter().zip(&nothing).map(|(call, nothing)| call / nothing).collect();
        let median = |times: &[f64]| Ratio::of(times).value;
        Ok(Self { call: median(&calls), nothing: median(&nothing), relative: median(&relative) })
    }
}

/// The two processes of a turn run one after the other, on a machine that others use: each is measured by the yardstick that it timed
/// in the same rounds, which is the same work in both, and these measures are compared. The row is the median turn.
fn rows(turns: &[Value]) -> Result<Vec<Row>> {
    let all = |by: &str| {
        let processes = turns.iter().map(|turn| Process::of(&turn[by]));
        processes.collect::<Result<Vec<Process>>>().with_context(|| format!("what {by} answered"))
    };
    let (kernel, preload) = (all("kernel")?, all("preload")?);
    let ratios: Vec<f64> =
        preload.iter().zip(&kernel).map(|(preload, kernel)| preload.relative / kernel.relative).collect();
    let median =
        |of: &[Process], what: fn(&Process) -> f64| Ratio::of(&of.iter().map(what).collect::<Vec<_>>()).value;
    let row = ONE_PAGE
        .ratio(Ratio::of(&ratios))
        .part("preload", median(&preload, |process| process.call))
        .part("kernel", median(&kernel, |process| process.call))
        .part("a system call that does nothing", median(&kernel, |process| process.nothing));
    Ok(vec![row])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A process whose calls take `call` and whose yardstick takes `nothing`, but for one round that was interrupted.
    fn process(call: f64, nothing: f64) -> Value {
        json!({"get_pa": [call, 100.0 * call, call], "syscall": [nothing, nothing, 100.0 * nothing]})
    }

    #[test]
    fn the_row_is_the_median_turn_by_the_yardstick() {
        let turn = |preload: Value, kernel: Value| json!({"kernel": kernel, "preload": preload});
        let turns = [
            turn(process(2.0, 1.0), process(10.0, 1.0)),
            // The machine was four times as slow for one of the two.
            turn(process(12.0, 4.0), process(10.0, 1.0)),
            turn(process(9.0, 1.0), process(10.0, 1.0)),
        ];
        let rows = rows(&turns).unwrap();
        assert_eq!(rows[0].figure.as_ref().unwrap().value, 0.3);
        assert!(rows[0].met() == Some(false) && rows[0].parts.len() == 3);
    }

    #[test]
    fn what_is_not_told_is_an_error() {
        assert!(rows(&[json!({"kernel": process(1.0, 1.0)})]).is_err());
    }
}
