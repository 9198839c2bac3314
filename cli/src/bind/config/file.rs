//! The file that says which devices are bound at boot: its form, and the mistakes in it.
//!
//! A line is one word `enable`, or `bind` with what the devices are told by; `#` begins a comment. All mistakes are told, not
//! the first one alone, and a file with a mistake is no file: nothing of it is done.

use noiommu::Provider;
use noiommu::pci::PciDevice;

/// The base class of bridges, which nobody binds.
const BRIDGES: &str = "06";

/// What a file asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Config {
    /// Whether the opt-in is given.
    pub(super) enable: bool,
    /// The lines that bind, in their order.
    pub(super) lines: Vec<Line>,
}

impl Config {
    /// The line that a device is bound by: the first that fits.
    pub(super) fn line_for(&self, device: &PciDevice) -> Option<&Line> {
        self.lines.iter().find(|line| line.fits(device))
    }
}

/// A line that binds. What is given must all fit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it is in the file, from 1 on.
    pub(super) number: usize,
    /// `domain:bus:device.function`.
    address: Option<String>,
    /// Vendor and device.
    id: Option<(u16, u16)>,
    /// The beginning of the class, in two, four or six hexadecimal digits.
    class: Option<String>,
    /// How the devices are to be reached; `None`: the best way.
    pub(super) provider: Option<Provider>,
}

impl Line {
    /// Whether a device is meant. Bridges never are.
    pub(super) fn fits(&self, device: &PciDevice) -> bool {
        let class = format!("{:06x}", device.class);
        !device.is_bridge
            && self.address.as_ref().is_none_or(|address| *address == device.address)
            && self.id.is_none_or(|id| id == (device.vendor, device.device))
            && self.class.as_ref().is_none_or(|prefix| class.starts_with(prefix))
    }

    /// The line in its plainest form.
    pub(super) fn text(&self) -> String {
        let mut words = vec!["bind".to_owned()];
        words.extend(self.address.as_ref().map(|address| format!("address={address}")));
        words.extend(self.id.map(|(vendor, device)| format!("id={vendor:04x}:{device:04x}")));
        words.extend(self.class.as_ref().map(|class| format!("class={class}")));
        words.extend(self.provider.map(|provider| format!("provider={}", provider.name())));
        words.join(" ")
    }

    fn selects_as(&self, other: &Self) -> bool {
        (&self.address, &self.id, &self.class) == (&other.address, &other.id, &other.class)
    }
}

/// What is wrong in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// The line, from 1 on.
    pub(super) line: usize,
    /// What is wrong.
    pub(super) cause: String,
    /// How it is to be written.
    pub(super) remedy: &'static str,
}

/// Reads a file's text.
pub(super) fn parse(text: &str) -> Result<Config, Vec<Mistake>> {
    let (mut config, mut mistakes) = (Config::default(), Vec::new());
    for (number, line) in (1..).zip(text.lines()) {
        let told = line.split_once('#').map_or(line, |(told, _)| told);
        let mut words = told.split_whitespace();
        let result = match words.next() {
            None => continue,
            Some("enable") => match words.next() {
                None => {
                    config.enable = true;
                    Ok(())
                }
                Some(word) => Err((format!("`enable` stands alone, {word:?} follows"), "enable")),
            },
            Some("bind") => bind(number, words).and_then(|line| {
                let same = config.lines.iter().find(|earlier| earlier.selects_as(&line));
                if let Some(earlier) = same {
                    let cause = format!("line {} means the same devices", earlier.number);
                    return Err((cause, "take one of the two lines out"));
                }
                config.lines.push(line);
                Ok(())
            }),
            Some(word) => {
                Err((format!("{word:?} is no command"), "a line begins with `enable`, `bind` or #"))
            }
        };
        mistakes.extend(result.err().map(|(cause, remedy)| Mistake { line: number, cause, remedy }));
    }
    if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
}

/// What is wrong and how it is to be written.
type Wrong = (String, &'static str);

/// Reads what follows `bind`.
fn bind<'a>(number: usize, words: impl Iterator<Item = &'a str>) -> Result<Line, Wrong> {
    const SELECTORS: &str = "bind address=0000:00:04.0, or id=8086:10d3, or class=0108, or several of them";
    let mut line = Line { number, ..Line::default() };
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| (format!("{word:?} has no ="), SELECTORS))?;
        let twice = match key {
            "address" => line.address.replace(address(value)?).is_some(),
            "id" => line.id.replace(id(value)?).is_some(),
            "class" => line.class.replace(class(value)?).is_some(),
            "provider" => line.provider.replace(provider(value)?).is_some(),
            _ => return Err((format!("{key:?} is nothing that `bind` knows"), SELECTORS)),
        };
        if twice {
            return Err((format!("{key} is given twice"), "one line for each device or kind of device"));
        }
    }
    if line.address.is_none() && line.id.is_none() && line.class.is_none() {
        return Err(("it does not say which devices".to_owned(), SELECTORS));
    }
    Ok(line)
}

/// Hexadecimal digits, so many of them.
fn digits(text: &str, count: usize) -> Option<u32> {
    let valid = text.len() == count && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    valid.then(|| u32::from_str_radix(text, 16).ok())?
}

fn address(text: &str) -> Result<String, Wrong> {
    let read = || {
        let (domain, rest) = match text.matches(':').count() {
            1 => ("0000", text),
            _ => text.split_once(':')?,
        };
        let (bus, rest) = rest.split_once(':')?;
        let (slot, function) = rest.split_once('.')?;
        let (domain, bus) = (digits(domain, 4)?, digits(bus, 2)?);
        let (slot, function) = (digits(slot, 2)?, digits(function, 1)?);
        (slot < 32 && function < 8).then(|| format!("{domain:04x}:{bus:02x}:{slot:02x}.{function}"))
    };
    read().ok_or_else(|| (format!("{text:?} is no PCI address"), "as lspci writes it: address=0000:00:04.0"))
}

fn id(text: &str) -> Result<(u16, u16), Wrong> {
    let read = || {
        let (vendor, device) = text.split_once(':')?;
        let number = |text| digits(text, 4).and_then(|id| u16::try_from(id).ok());
        Some((number(vendor)?, number(device)?))
    };
    read().ok_or_else(|| {
        (format!("{text:?} is no id"), "vendor and device as `lspci -n` writes them: id=8086:10d3")
    })
}

fn class(text: &str) -> Result<String, Wrong> {
    let lower = text.to_ascii_lowercase();
    let class = lower.strip_prefix("0x").unwrap_or(&lower);
    if !matches!(class.len(), 2 | 4 | 6) || digits(class, class.len()).is_none() {
        return Err((
            format!("{text:?} is no class"),
            "two, four or six digits as `lspci -n` writes them: class=0108",
        ));
    }
    if class.starts_with(BRIDGES) {
        return Err((format!("{text} are bridges"), "bridges are never bound: name the devices behind them"));
    }
    Ok(class.to_owned())
}

fn provider(text: &str) -> Result<Provider, Wrong> {
    const REMEDY: &str = "one of `noiommu bind --help`; without it, the best that there is is taken";
    super::super::provider(text).map_err(|_| (format!("{text:?} is no provider"), REMEDY))
}

#[cfg(test)]
mod tests;
