//! What was done with a device, for people and for programs.

use anstyle::{AnsiColor, Style};
use noiommu::binding::{Bound, Offer, Plan, Restored};
use noiommu::{Provider, optin};
use serde_json::{Value, json};

use crate::ui::styled;

fn bold(text: &str) -> String {
    styled(Style::new().bold(), text)
}

fn dimmed(text: &str) -> String {
    styled(Style::new().dimmed(), text)
}

/// The ways that are not to be had, each with reason and remedy.
fn missed_lines<'a>(offers: impl Iterator<Item = &'a Offer>) -> Vec<String> {
    let mut lines = Vec::new();
    for offer in offers {
        if let Some(refusal) = offer.refusal() {
            lines.push(format!(
                "  {}",
                dimmed(&format!("not {}: {}", offer.provider().name(), refusal.cause()))
            ));
            if let Some(remedy) = refusal.remedy() {
                lines.push(format!("    {} {remedy}", bold("try:")));
            }
        }
    }
    lines
}

/// An offer for programs.
pub(crate) fn offer_json(offer: &Offer) -> Value {
    json!({
        "provider": offer.provider().name(),
        "available": offer.is_available(),
        "refused": offer.refusal().map(crate::error_json),
    })
}

pub(super) fn plan_lines(plan: &Plan) -> Vec<String> {
    let device = &plan.device;
    let mut lines = vec![format!("{} would be bound for {}", bold(&device.address), plan.provider.name())];
    let steps = plan.steps();
    if steps.is_empty() {
        lines.push("  nothing to do: it is so already".to_owned());
    }
    lines.extend(steps.iter().enumerate().map(|(index, step)| format!("  {}. {step}", index + 1)));
    let better = plan.offers.iter().take_while(|offer| offer.provider() != plan.provider);
    lines.extend(missed_lines(better));
    lines
}

pub(super) fn plan_json(plan: &Plan) -> Value {
    json!({
        "address": plan.device.address,
        "provider": plan.provider.name(),
        "driver": plan.device.driver,
        "steps": plan.steps(),
        "offers": plan.offers.iter().map(offer_json).collect::<Vec<_>>(),
    })
}

pub(super) fn bound_lines(bound: &Bound) -> Vec<String> {
    let mut lines = vec![format!("{} is bound for {}", bold(&bound.address), bound.provider.name())];
    let name = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "none".to_owned());
    lines.push(format!("  driver: {} (before: {})", name(&bound.driver), name(&bound.driver_before)));
    lines.extend(bound.nodes.iter().map(|node| format!("  {}", node.display())));
    lines.extend(missed_lines(bound.missed.iter()));
    if matches!(bound.provider, Provider::Sysfs | Provider::Uio) && !optin::is_enabled() {
        let yellow = AnsiColor::Yellow.on_default();
        lines.push(format!("  {}", styled(yellow, "to be opened it needs the opt-in: `noiommu enable`")));
    }
    lines.push(format!("  {}", dimmed(&format!("as it was before: noiommu unbind {}", bound.address))));
    lines
}

pub(super) fn bound_json(bound: &Bound) -> Value {
    json!({
        "address": bound.address,
        "provider": bound.provider.name(),
        "driver": bound.driver,
        "driver_before": bound.driver_before,
        "nodes": bound.nodes.iter().map(|node| node.display().to_string()).collect::<Vec<_>>(),
        "missed": bound.missed.iter().map(offer_json).collect::<Vec<_>>(),
    })
}

pub(super) fn restored_lines(restored: &Restored) -> Vec<String> {
    let state = match &restored.driver {
        _ if restored.is_gone => "is gone, and forgotten".to_owned(),
        Some(driver) => format!("is as it was: the driver {driver} has it"),
        None => "is as it was: without a driver".to_owned(),
    };
    vec![format!("{} {state}", bold(&restored.address))]
}

pub(super) fn restored_json(restored: &Restored) -> Value {
    json!({ "address": restored.address, "driver": restored.driver, "gone": restored.is_gone })
}
