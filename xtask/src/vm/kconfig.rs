//! Kernel configurations as text: what a fragment asks for, and whether Kconfig granted it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// Values of configuration symbols, of which later ones replace earlier ones.
///
/// A symbol that is not set reads `n`, as a symbol that Kconfig does not show at all does: neither compiles anything.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Config {
    values: BTreeMap<String, String>,
}

impl Config {
    /// Reads the form of `.config` and of fragments. Comments are skipped, but what is no line of that form is an error:
    /// a misspelt line would ask for nothing.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut values = BTreeMap::new();
        for line in text.lines().map(str::trim) {
            let unset = line.strip_prefix("# ").and_then(|line| line.strip_suffix(" is not set"));
            let (symbol, value) = match (unset, line.split_once('=')) {
                (Some(symbol), _) if symbol.starts_with("CONFIG_") => (symbol, "n"),
                _ if line.is_empty() || line.starts_with('#') => continue,
                (_, Some((symbol, value))) => (symbol, value),
                _ => bail!("{line:?} is no line of a kernel configuration"),
            };
            let name = symbol.strip_prefix("CONFIG_").filter(|name| is_name(name));
            let name = name.with_context(|| format!("{symbol:?} is no configuration symbol"))?;
            ensure!(!value.is_empty(), "CONFIG_{name} is given no value");
            let before = values.insert(name.to_owned(), value.to_owned());
            ensure!(before.is_none(), "CONFIG_{name} is given twice");
        }
        Ok(Self { values })
    }

    /// This configuration with the values of `other` in place of its own.
    pub(crate) fn with(&self, other: &Self) -> Self {
        let mut values = self.values.clone();
        values.extend(other.values.iter().map(|(name, value)| (name.clone(), value.clone())));
        Self { values }
    }

    /// The form of `.config`.
    pub(crate) fn render(&self) -> String {
        self.values.iter().map(|(name, value)| line(name, value)).collect::<Vec<_>>().join("\n") + "\n"
    }

    /// What of `wanted` does not hold here, one line each.
    pub(crate) fn lacks(&self, wanted: &Self) -> Vec<String> {
        let mut lacking = Vec::new();
        for (name, value) in &wanted.values {
            let found = self.values.get(name).map_or("n", String::as_str);
            if found != value {
                lacking.push(format!("{} (it is {found})", line(name, value)));
            }
        }
        lacking
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn line(name: &str, value: &str) -> String {
    match value {
        "n" => format!("# CONFIG_{name} is not set"),
        value => format!("CONFIG_{name}={value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_are_laid_over_each_other() {
        let base = Config::parse("# a comment\nCONFIG_A=y\n\n# CONFIG_B is not set\nCONFIG_N=8\n").unwrap();
        let over = Config::parse("# CONFIG_A is not set\nCONFIG_S=\"-x\"\n").unwrap();
        let both = base.with(&over);
        assert_eq!(
            both.render(),
            "# CONFIG_A is not set\n# CONFIG_B is not set\nCONFIG_N=8\nCONFIG_S=\"-x\"\n"
        );
        assert_eq!(Config::parse(&both.render()).unwrap(), both);
    }

    #[test]
    fn what_was_not_granted_is_told() {
        let wanted = Config::parse("CONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_C is not set\n").unwrap();
        assert!(Config::parse("CONFIG_A=y\nCONFIG_D=y\n").unwrap().lacks(&wanted).is_empty());
        let lacking = Config::parse("CONFIG_A=m\nCONFIG_B=y\n").unwrap().lacks(&wanted);
        assert_eq!(lacking, ["CONFIG_A=y (it is m)", "# CONFIG_B is not set (it is y)"]);
        assert_eq!(Config::default().lacks(&wanted), ["CONFIG_A=y (it is n)"]);
    }

    #[test]
    fn misspelt_lines_are_no_comments() {
        for text in [
            "CONFIG_A",
            "A=y",
            "CONFIG_A=",
            "CONFIG_=y",
            "CONFIG_A =y",
            "CONFIG_A=y\nCONFIG_A=m",
            "# CONFIG_ is not set",
        ] {
            assert!(Config::parse(text).is_err(), "{text:?}");
        }
    }
}
