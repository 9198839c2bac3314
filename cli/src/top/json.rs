//! A look, for programs.

use std::time::UNIX_EPOCH;

use noiommu::guardian::Status;
use noiommu::stats::{ContextStats, Guardian, ProcessStats, Rescue};
use serde_json::{Value, json};

use super::sample::{Rescues, Sample};

/// All of it, as one line.
pub(super) fn object(sample: &Sample) -> String {
    let since = sample.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "time": since.as_millis() as u64,
        "processes": sample.seen.processes.iter().map(|it| process(it, sample)).collect::<Vec<_>>(),
        "guardians": sample.seen.guardians.iter().map(guardian).collect::<Vec<_>>(),
        "rescues": rescues(&sample.rescues),
        "hidden": sample.seen.hidden,
        "other_versions": sample.seen.other_versions,
    })
    .to_string()
}

fn process(stats: &ProcessStats, sample: &Sample) -> Value {
    let rates = sample
        .rates
        .get(&stats.process)
        .map(|rates| json!({ "maps": rates.maps, "unmaps": rates.unmaps, "lookups": rates.lookups }));
    json!({
        "pid": stats.process,
        "name": stats.name,
        "areas": stats.areas(),
        "bytes": stats.bytes(),
        "table_frames": stats.table_frames(),
        "pins": { "slots": stats.pin_slots, "bytes": stats.pin_bytes, "vmpin": stats.charged },
        "devices": stats.devices,
        "maps": stats.maps,
        "unmaps": stats.unmaps,
        "lookups": stats.lookups,
        "per_second": rates,
        "guardian": status(&stats.guardian),
        "contexts": stats.contexts.iter().map(context).collect::<Vec<_>>(),
        "contexts_untold": stats.contexts_untold,
    })
}

fn context(context: &ContextStats) -> Value {
    json!({
        "kind": context.kind.name(),
        "ioases": context.ioases,
        "areas": context.areas,
        "bytes": context.bytes,
        "table_frames": context.table_frames,
    })
}

fn status(status: &Status) -> Value {
    match status {
        Status::Own { process, apart } => json!({ "state": "own", "process": process, "apart": apart }),
        Status::Service => json!({ "state": "service" }),
        Status::Dead => json!({ "state": "dead" }),
        _ => json!({ "state": "none" }),
    }
}

fn guardian(guardian: &Guardian) -> Value {
    let state = if guardian.rescuing { "rescuing" } else { "watching" };
    json!({ "pid": guardian.process, "driver": guardian.driver, "state": state, "loose_devices": guardian.loose })
}

fn rescues(rescues: &Rescues) -> Value {
    let last = |rescue: &Rescue| {
        json!({
            "outcome": rescue.outcome.name(),
            "time": rescue.time,
            "device": rescue.device,
            "process": rescue.process,
            "how": rescue.how,
        })
    };
    json!({
        "quiet": rescues.quiet,
        "not_quiet": rescues.not_quiet,
        "lost": rescues.lost,
        "last": rescues.last.as_ref().map(last),
    })
}
