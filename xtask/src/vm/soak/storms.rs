//! `cargo xtask soak storms`: DMA while all of memory is in motion.
//!
//! Every transfer is verified in the guest, now and then by the host too. That the storms were real is judged as well: by what the
//! kernel counts of them, and by pages of the control, which were only mlocked and have moved.

use std::fs;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::project::Project;
use crate::ui::{Look, paint, seconds};
use crate::vm::guest::{self, Options, Scenario};
use crate::vm::pack::{self, Tree};
use crate::vm::{EDU, HOST_PACKAGES, NVME, STOCK_PROGRAMS, apt, kernel, modules};

/// Options of the soak.
#[derive(Args, Debug)]
pub(crate) struct Storms {
    /// How long, on each kernel
    #[arg(long, default_value_t = 10)]
    minutes: u64,

    /// The short form, as `cargo xtask test` runs it: some seconds on each kernel
    #[arg(long, conflicts_with = "minutes")]
    short: bool,

    /// Only the kernel of this suite of the machine's mirror; `stock` is the distribution's own
    #[arg(long)]
    suite: Option<String>,

    /// Print the result as one JSON object, and nothing else on stdout
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    run: Options,
}

impl Storms {
    /// How long, in seconds.
    fn seconds(&self) -> u64 {
        if self.short { SHORT } else { self.minutes * 60 }
    }
}

/// The short form.
impl Default for Storms {
    fn default() -> Self {
        Self { minutes: 0, short: true, suite: None, json: false, run: Options::default() }
    }
}

/// Seconds of the short form.
const SHORT: u64 = 8;

/// The kernels: the distribution's own, and its newer one.
const SUITES: [&str; 2] = ["stock", "backports"];

/// Edu devices take a tenth of a second for each copy: four of them copy at once.
const DEVICES: [&str; 5] = [EDU, EDU, EDU, EDU, NVME];

/// For swapping to memory: what zram takes, and what packs for it where that is apart.
const MODULES: [&str; 2] = ["lzo_rle", "zram"];

/// What the kernel must have counted, and what that is.
const COUNTED: [(&str, &str); 9] = [
    ("compact_isolated", "pages taken by compaction"),
    ("pgmigrate_success", "pages moved"),
    ("thp_fault_alloc", "huge pages made at once"),
    ("thp_collapse_alloc", "huge pages made by collapse"),
    ("thp_split_page", "huge pages split"),
    ("thp_split_pmd", "huge mappings split"),
    ("pgsteal_anon", "pages taken back"),
    ("pswpout", "pages swapped out"),
    ("pswpin", "pages swapped in"),
];

/// What the kernel counts, too, but not in a short time.
const ALSO: [(&str, &str); 3] = [
    ("pgscan_kswapd", "pages looked at for want of memory everywhere"),
    ("thp_split_page_failed", "huge pages that did not let themselves be split"),
    ("pgmigrate_fail", "pages that did not let themselves be moved"),
];

/// What the driver's process must have done to its own buffers.
const OWN: [&str; 6] = ["mprotect", "mprotect_back", "pageout", "cold", "mergeable", "fork"];

/// Storms of other processes.
const OTHERS: [&str; 7] = ["compact", "fragment", "huge", "squeezed", "reclaim", "near-oom", "mlocked"];

/// The buffers, by what they are made of.
const PAGES: [&str; 3] = ["base pages", "transparent huge pages", "hugetlb 2M"];

/// Runs the guests, and judges.
pub(crate) fn storms(project: &Project, options: &Storms) -> Result<()> {
    apt::install(&HOST_PACKAGES)?;
    let suites: Vec<&str> = match &options.suite {
        Some(suite) => vec![suite],
        None => SUITES.to_vec(),
    };
    let programs = pack::build_static(project, &STOCK_PROGRAMS)?;
    let (mut guests, mut faults) = (Vec::new(), Vec::new());
    for suite in suites {
        let kernel = kernel::stock(project, (suite != "stock").then_some(suite))?;
        let mut files = Tree::default();
        files.add_programs(&programs)?;
        modules::add(&kernel, &MODULES, &mut files)?;
        files.add_text("seconds", &options.seconds().to_string());
        let scenario = Scenario {
            name: "soak-storms",
            arguments: Vec::new(),
            devices: &DEVICES,
            drives: &["nvme"],
            nets: &[],
            append: &[],
            witnessed: true,
        };
        let mut run = options.run.clone();
        run.apart = options.json;
        // All that is done before and after, on a busy machine.
        run.at_least(300 + 2 * options.seconds());
        let found = guest::run(project, &scenario, &kernel, files, &run).and_then(|output| {
            let text = fs::read_to_string(output.join("storms")).context("the guest left no account")?;
            serde_json::from_str::<Value>(&text).context("the guest's account is no JSON")
        });
        match found {
            Ok(found) => {
                faults.extend(judge(&found).into_iter().map(|fault| format!("{}: {fault}", kernel.release)));
                guests.push(json!({"kernel": kernel.origin, "found": found}));
            }
            // The other kernel tells something even so.
            Err(error) => faults.push(format!("{}: {error:#}", kernel.release)),
        }
    }
    let report = json!({"passed": faults.is_empty(), "faults": faults, "guests": guests});
    let logs = project.run_dir("soak-storms");
    fs::create_dir_all(&logs)?;
    fs::write(logs.join("report.json"), format!("{report:#}\n"))?;
    if options.json {
        println!("{report}");
    } else {
        guests.iter().for_each(|guest| print!("{}", table(guest)));
    }
    if !faults.is_empty() {
        bail!("DMA did not go on as it has to:\n  - {}", faults.join("\n  - "));
    }
    Ok(())
}

/// A count that a guest tells; one that it does not tell is none.
fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What keeps a run from passing.
fn judge(found: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for (key, what) in [("wrong_bytes", "wrong bytes"), ("moved_pages", "pinned pages that have moved")] {
        // What is not told is no good sign.
        if found[key] != 0 {
            faults.push(format!("{} {what}: {}", found[key], found["wrong"]));
        }
    }
    let some =
        |value: &Value, what: String| (count(value) == 0).then(|| format!("no {what}: that was no storm"));
    for (key, what) in [("edu", "copies by edu"), ("nvme", "reads by NVMe")] {
        faults.extend(some(&found[key]["transfers"], what.to_owned()));
    }
    faults.extend(some(&found["nvme"]["fresh"], "reads into memory that was just mapped".to_owned()));
    faults.extend(some(&found["looks"], "looks at where pages are".to_owned()));
    faults.extend(
        COUNTED.iter().filter_map(|(key, what)| some(&found["kernel"][key], format!("{what} ({key})"))),
    );
    faults.extend(
        OWN.iter().filter_map(|key| some(&found["own"][key]["done"], format!("{key} of the buffers"))),
    );
    let buffers: Vec<&str> =
        list(&found["buffers"]).iter().filter_map(|buffer| buffer["pages"].as_str()).collect();
    if buffers != PAGES {
        faults.push(format!("the buffers are of {buffers:?}, not of {PAGES:?}"));
    }
    for name in OTHERS {
        let Some(storm) = list(&found["others"]).iter().find(|storm| storm["name"] == name) else {
            faults.push(format!("there was no storm {name}"));
            continue;
        };
        faults.extend(some(&storm["rounds"], format!("rounds of the storm {name}")));
        if storm["foreign"] != 0 {
            faults.push(format!(
                "the storm {name} has found {} foreign bytes: {}",
                storm["foreign"], storm["first"]
            ));
        }
        if name == "mlocked" {
            faults.extend(some(&storm["moved"], "mlocked page has moved".to_owned()));
        }
    }
    faults
}

/// A guest's figures, for people.
fn table(guest: &Value) -> String {
    let found = &guest["found"];
    let time = std::time::Duration::from_secs_f64(found["seconds"].as_f64().unwrap_or_default());
    let title = format!("{}: {} of storms", guest["kernel"].as_str().unwrap_or_default(), seconds(time));
    let mut text = format!("\n{}\n", paint(title, Look::Bold));
    let mut row = |what: &str, number: u64, good: Option<bool>| {
        let number = format!("{number:>12}");
        let number = match good {
            Some(true) => paint(number, Look::Green),
            Some(false) => paint(number, Look::Red),
            None => number,
        };
        text += &format!("  {what:<52}{number}\n");
    };
    for (key, what) in [("edu", "edu: copies from and to memory"), ("nvme", "NVMe: reads into memory")] {
        row(what, count(&found[key]["transfers"]), None);
        row("      bytes", count(&found[key]["bytes"]), None);
    }
    row("      of these, into memory mapped a moment before", count(&found["nvme"]["fresh"]), None);
    row("wrong bytes", count(&found["wrong_bytes"]), Some(found["wrong_bytes"] == 0));
    row("pinned pages that have moved", count(&found["moved_pages"]), Some(found["moved_pages"] == 0));
    for storm in list(&found["others"]).iter().filter(|storm| storm["name"] == "mlocked") {
        row(
            "mlocked pages that have moved (the control)",
            count(&storm["moved"]),
            Some(count(&storm["moved"]) > 0),
        );
    }
    let foreign: u64 = list(&found["others"]).iter().map(|storm| count(&storm["foreign"])).sum();
    row("foreign bytes in the storms' own memory", foreign, Some(foreign == 0));
    row("forks whose children wrote to their copies", count(&found["own"]["fork"]["done"]), None);
    for (key, what) in COUNTED.into_iter().chain(ALSO) {
        row(what, count(&found["kernel"][key]), None);
    }
    let own = found["own"].as_object().into_iter().flatten();
    let own = own.map(|(name, counts)| format!("{name} {}", count(&counts["done"])));
    text += &wrapped("done to the buffers", own);
    let others = list(&found["others"]).iter();
    let others =
        others.map(|storm| format!("{} {}", storm["name"].as_str().unwrap_or_default(), storm["rounds"]));
    text += &wrapped("rounds of storms", others);
    text
}

/// A list, in as many lines as it takes.
fn wrapped(title: &str, items: impl Iterator<Item = String>) -> String {
    const WIDTH: usize = 66;
    let (mut text, mut line) = (String::new(), format!("  {title}:"));
    for item in items {
        if line.len() + 1 + item.len() > WIDTH {
            text += &format!("{line}\n");
            line = "   ".to_owned();
        }
        line += &format!(" {item}");
    }
    text + &line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An account in which everything is as it has to be.
    fn account() -> Value {
        let counted: serde_json::Map<String, Value> =
            COUNTED.iter().map(|(key, _)| ((*key).to_owned(), 5.into())).collect();
        let own: serde_json::Map<String, Value> =
            OWN.iter().map(|key| ((*key).to_owned(), json!({"done": 5, "refused": 1}))).collect();
        let other = |name: &&str| json!({"name": name, "rounds": 5, "foreign": 0, "first": null, "moved": 5});
        json!({
            "seconds": 12.0,
            "edu": {"transfers": 5, "bytes": 5},
            "nvme": {"transfers": 5, "bytes": 5, "fresh": 5},
            "buffers": PAGES.iter().map(|pages| json!({"pages": pages})).collect::<Vec<_>>(),
            "wrong_bytes": 0, "wrong": [], "moved_pages": 0, "looks": 5,
            "own": own, "others": OTHERS.iter().map(other).collect::<Vec<_>>(), "kernel": counted,
        })
    }

    #[test]
    fn only_what_has_to_be_passes() {
        assert_eq!(judge(&account()), Vec::<String>::new());
        // Everything that is told, the other way round or not told at all.
        let wrong = |place: &str, value: Value| {
            let mut account = account();
            *account.pointer_mut(place).unwrap() = value;
            assert_eq!(judge(&account).len(), 1, "{place}: {:?}", judge(&account));
        };
        for place in ["/wrong_bytes", "/moved_pages", "/others/3/foreign"] {
            wrong(place, 1.into());
            wrong(place, Value::Null);
        }
        for place in [
            "/edu/transfers",
            "/nvme/transfers",
            "/nvme/fresh",
            "/looks",
            "/others/0/rounds",
            "/others/6/moved",
        ] {
            wrong(place, 0.into());
            wrong(place, Value::Null);
        }
        for (key, _) in COUNTED {
            wrong(&format!("/kernel/{key}"), 0.into());
        }
        for key in OWN {
            wrong(&format!("/own/{key}/done"), 0.into());
        }
        wrong("/buffers/1/pages", "base pages".into());
        wrong("/others/2/name", "no storm".into());
    }

    #[test]
    fn the_table_fits() {
        let text = table(&json!({"kernel": "k", "found": account()}));
        assert!(text.lines().all(|line| line.chars().count() <= 68), "{text}");
        assert!(text.contains("wrong bytes"));
    }
}
