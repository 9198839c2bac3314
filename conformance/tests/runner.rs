//! The runner as a program, with cases that need no device: what it compares, records, survives and tells.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A directory of cases for one test.
struct Cases(PathBuf);

impl Cases {
    fn new(name: &str, text: &str) -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("abi")).unwrap();
        fs::write(directory.join("abi/test.txt"), text).unwrap();
        Self(directory)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_noiommu-conformance"));
        fs::write(self.0.join("nothing-listed"), "").unwrap();
        command.arg("run").arg("--cases").arg(&self.0).args(["--provider", "native"]);
        if !arguments.contains(&"--listed") {
            command.arg("--listed").arg(self.0.join("nothing-listed"));
        }
        command.args(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let output = self.run(&[arguments, &["--json"]].concat());
        let told = format!("{}", String::from_utf8_lossy(&output.stderr));
        (
            output.status.code(),
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {told}")),
        )
    }

    /// What the runner records for these cases.
    fn recorded(&self) -> String {
        let golden = self.0.join("golden");
        self.run(&["--record", golden.to_str().unwrap()]);
        fs::read_to_string(golden.join("abi/test.txt")).unwrap()
    }
}

const FILES: &str = "\
case files
  open /dev/null n
  open /nowhere m => ENOENT
  IOMMU_IOAS_ALLOC n => ENOTTY
  write n 0 8 => 8
  IOMMU_IOAS_ALLOC 777 => EBADF
";

#[test]
fn the_same_answers_are_no_difference() {
    let (code, report) = Cases::new("same", FILES).json(&[]);
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(report["cases"], 1);
    assert_eq!(report["differences"], 0);
    assert_eq!(report["sections"]["abi"]["same"], 1);
}

#[test]
fn another_answer_is_told_with_its_step() {
    let cases = Cases::new("different", &FILES.replace("ENOTTY", "EINVAL"));
    let (code, report) = cases.json(&[]);
    assert_eq!(code, Some(1));
    assert_eq!(report["differences"], 1);
    let different = &report["different"][0];
    assert_eq!(different["case"], "abi/files");
    assert_eq!(different["line"], 4);
    assert_eq!((&different["expected"], &different["got"]), (&"EINVAL".into(), &"ENOTTY".into()));
    let text = String::from_utf8(cases.run(&[]).stdout).unwrap();
    assert!(
        text.contains("\n!   IOMMU_IOAS_ALLOC n\n      expected EINVAL\n      got      ENOTTY\n"),
        "{text}"
    );
}

#[test]
fn what_is_listed_is_asserted_too() {
    let cases = Cases::new("listed", &FILES.replace("ENOTTY", "EINVAL"));
    let entry = |answer: &str, provider: &str| {
        let file = cases.0.join("listed");
        let text = format!(
            "# why\n\ncase abi/files\non {provider}\nstep IOMMU_IOAS_ALLOC n\nanswer {answer}\nreason a test\n  of two lines\n"
        );
        fs::write(&file, text).unwrap();
        cases.json(&["--listed", file.to_str().unwrap()])
    };
    let (code, report) = entry("ENOTTY", "native");
    assert_eq!((code, &report["differences"]), (Some(0), &0.into()), "{report}");
    assert_eq!(report["listed"][0]["reason"], "a test of two lines");
    // Neither the kernel's answer nor the listed one.
    let (code, report) = entry("EPERM", "native");
    assert_eq!((code, &report["differences"]), (Some(1), &1.into()), "{report}");
    // For several providers, this one among them.
    let (code, _) = entry("ENOTTY", "preload native");
    assert_eq!(code, Some(0));
    // For another provider.
    let (code, _) = entry("ENOTTY", "preload");
    assert_eq!(code, Some(1));
}

#[test]
fn an_entry_that_is_not_needed_any_more_is_told() {
    let cases = Cases::new("obsolete", FILES);
    let file = cases.0.join("listed");
    fs::write(&file, "case abi/files\non native\nstep IOMMU_IOAS_ALLOC n\nanswer EIO\nreason none\n")
        .unwrap();
    let (code, report) = cases.json(&["--listed", file.to_str().unwrap()]);
    assert_eq!((code, &report["differences"]), (Some(0), &0.into()));
    assert_eq!(report["obsolete"][0]["case"], "abi/files");
}

#[test]
fn recording_fills_in_answers_and_nothing_else() {
    let bare: String =
        FILES.lines().map(|line| line.split(" => ").next().unwrap().to_owned() + "\n").collect();
    assert_ne!(bare, FILES);
    assert_eq!(Cases::new("recording", &bare).recorded(), FILES);
    assert_eq!(Cases::new("recording-again", FILES).recorded(), FILES);
}

#[test]
fn crashes_and_hangs_are_answers() {
    let cases = Cases::new(
        "crashes",
        "\
case child
  fork
    load 0 => killed by SIGSEGV
    load 0 => not reached
  end
  open /dev/null n
case self
  open /dev/null n
  load 8 => killed by SIGSEGV
  open /dev/null n => not reached
case hang
  open /dev/null n
  sleep 100000 => timeout
  close n => not reached
case hanging-child
  fork => timeout
    sleep 100000 => not reached
  end
",
    );
    let (code, report) = cases.json(&["--timeout", "2"]);
    assert_eq!(code, Some(0), "{report}");
}

#[test]
fn children_threads_programs_and_passed_descriptors() {
    let cases = Cases::new(
        "processes",
        "\
case by-turns
  eventfd e
  child c
    write e 1 8 => 8
    wait
    read e 8 => 8: 0x5
    wait
    load 0 => not reached
  end
  read e 8 => 8: 0x1
  write e 5 8 => 8
  resume c
  read e 8 => EAGAIN
  kill c
case other-program
  eventfd e
  open /dev/null n
  fcntl e setfd 0 => 0
  open /dev/null o cloexec
  let x=7
  exec
    write e $x 8 => 8
    write n 0 3 => 3
    write o 0 3 => EBADF
  end
  read e 8 => 8: 0x7
case threads
  thread
    eventfd e
    write e 3 8 => 8
  end
  read e 8 => 8: 0x3
case passing
  socketpair a b
  fork
    open /dev/null n
    pass a n
  end
  receive b m
  write m 0 9 => 9
  receive b m => EAGAIN
case repeated
  eventfd e
  repeat 3
    write e $n+1 8 => 8 (x3)
  end
  read e 8 => 8: 0x6
  poll e 0 in => nothing
",
    );
    let (code, report) = cases.json(&[]);
    assert_eq!(code, Some(0), "{report}");
}

#[test]
fn a_mistake_in_a_case_is_no_answer() {
    for text in ["case a\n  nonsense\n", "case a\n  IOMMU_IOAS_ALLOC 0 field=1\n"] {
        let output = Cases::new("mistake", text).run(&[]);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("abi/a, line 2: mistake: "), "{output:?}");
    }
}

/// A provider that refuses one step does not end the run: what would have come of it is missing in the next ones.
#[test]
fn what_a_failed_step_should_have_made_is_a_difference() {
    let cases = Cases::new("without", "case a\n  mmap m 777 0 1\n  load m\n  close m\n  show $x+m\n");
    let (code, report) = cases.json(&[]);
    assert_eq!(code, Some(1));
    let got: Vec<&Value> = report["different"].as_array().unwrap().iter().map(|d| &d["got"]).collect();
    assert_eq!(got, ["EBADF", "without m", "without m", "without $x"]);
    // Recording it would be a mistake.
    let golden = cases.0.join("golden");
    assert_eq!(cases.run(&["--record", golden.to_str().unwrap()]).status.code(), Some(2));
}

#[test]
fn a_case_without_what_it_needs_is_skipped() {
    let (code, report) = Cases::new("needs", "needs nothing-like-it\ncase a\n  close 777\n").json(&[]);
    assert_eq!(code, Some(0));
    assert_eq!(report["sections"]["abi"]["skipped"], 1);
    assert_eq!(report["skipped"][0]["case"], "abi/a");
}
