//! The machine's apt: installing what a task needs, and fetching packages without touching its configuration.
//!
//! Packages are always fetched by apt itself, so its signature checks hold. Where the machine's own package lists do not
//! serve (never fetched, out of date, another suite), lists of our own are kept in the cache, from the same mirrors.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::command;
use crate::ui::Work;

/// One package in one version, as the package lists describe it.
#[derive(Debug, Clone)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// The SHA-256 of the .deb, in hex.
    pub(crate) sha256: String,
    /// The size of the .deb.
    pub(crate) size: u64,
    /// The names of the packages that it depends on.
    pub(crate) depends: Vec<String>,
}

/// A way to ask apt: with the machine's lists, or with lists of our own.
pub(crate) struct Apt {
    options: Vec<String>,
    private: bool,
}

impl Apt {
    /// The machine's own configuration and lists.
    pub(crate) fn machine() -> Self {
        Self { options: sandbox(), private: false }
    }

    /// Lists of our own in `dir`; of the machine's sources, or of `sources` (deb822) in their place.
    pub(crate) fn private(dir: &Path, sources: Option<&str>) -> Result<Self> {
        let text = |path: PathBuf| {
            let text = path.to_str().context("the cache's path is not UTF-8")?;
            ensure!(
                !text.contains(['"', ';']),
                "apt cannot take the path {text}: set NOIOMMU_CACHE to a plain one"
            );
            Ok::<_, anyhow::Error>(text.to_owned())
        };
        fs::create_dir_all(dir.join("lists/partial"))?;
        fs::create_dir_all(dir.join("cache/archives/partial"))?;
        let mut options = sandbox();
        options.push(format!("Dir::State::lists={}", text(dir.join("lists"))?));
        options.push(format!("Dir::Cache={}", text(dir.join("cache"))?));
        if let Some(sources) = sources {
            let (file, none) = (dir.join("noiommu.sources"), dir.join("no-parts"));
            fs::create_dir_all(&none)?;
            fs::write(&file, sources)?;
            options.push(format!("Dir::Etc::sourcelist={}", text(file)?));
            options.push(format!("Dir::Etc::sourceparts={}", text(none)?));
        }
        Ok(Self { options, private: true })
    }

    /// Fetches the lists anew; only for lists of our own.
    pub(crate) fn update(&self) -> Result<()> {
        assert!(self.private, "the machine's own lists are not ours to change");
        let work = Work::start("fetching package lists");
        // Nothing but the lists of packages: hooks, translations and component metadata are of no use here.
        command::output(self.command("apt-get").args([
            "-o",
            "Acquire::Languages=none",
            "--error-on=any",
            "update",
        ]))
        .context("apt cannot fetch its package lists: is the network there?")?;
        work.finish();
        Ok(())
    }

    /// The candidate version of `name`, or nothing where the lists do not know it.
    pub(crate) fn candidate(&self, name: &str) -> Result<Option<Package>> {
        ensure!(command::which("apt-cache").is_some(), "no apt on this machine: guests need a Debian host");
        // `apt-cache` fails for a name that it does not know, which is an answer here.
        let Ok(text) = command::output(self.command("apt-cache").args(["show", "--no-all-versions", name]))
        else {
            return Ok(None);
        };
        Ok(Some(parse_package(&text)?))
    }

    /// Downloads `package` into `dir` and answers the file.
    pub(crate) fn download(&self, package: &Package, dir: &Path) -> Result<PathBuf> {
        let work = Work::bytes(format!("downloading {}", package.name), package.size);
        let mut command = self.command("apt-get");
        command
            .args(["--quiet", "download", &format!("{}={}", package.name, package.version)])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("apt-get does not start")?;
        while child.try_wait()?.is_none() {
            let present = fs::read_dir(dir)?.flatten().filter_map(|entry| entry.metadata().ok());
            work.set_position(present.map(|file| file.len()).sum());
            thread::sleep(Duration::from_millis(100));
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "`{}` failed ({}):\n{}",
                command::describe(&command),
                output.status,
                command::tail(&String::from_utf8_lossy(&output.stderr), 15)
            );
        }
        work.finish();
        fs::read_dir(dir)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get download left no .deb")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C");
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }
}

/// apt as root fetches as user `_apt`, who may not write into the cache.
fn sandbox() -> Vec<String> {
    if is_root() { vec!["APT::Sandbox::User=root".to_owned()] } else { Vec::new() }
}

fn is_root() -> bool {
    // The owner of this process's directory in proc is its effective user.
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|dir| dir.uid() == 0)
}

/// Installs those of `packages` that are missing, and says so.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    eprintln!("needs {names}: installing with apt-get");
    let as_root = |arguments: &[&str]| {
        let mut command = Command::new(if is_root() { "env" } else { "sudo" });
        if !is_root() {
            command.args(["-n", "env"]);
        }
        command.args(["LC_ALL=C", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--yes"]).args(arguments);
        command
    };
    let arguments = [&["--no-install-recommends", "install"], missing.as_slice()].concat();
    let remedy = || format!("as root: apt-get update && apt-get install {names}");
    let work = Work::start(format!("installing {names}"));
    // The lists may be missing or out of date; that shows in a failure and costs nothing when it is not so.
    if command::output(&mut as_root(&arguments)).is_err() {
        work.set_message("apt-get update".to_owned());
        command::output(&mut as_root(&["update"])).with_context(remedy)?;
        work.set_message(format!("installing {names}"));
        command::output(&mut as_root(&arguments)).with_context(remedy)?;
    }
    work.finish();
    Ok(())
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", package]);
    command::output(&mut query).is_ok_and(|status| status == "installed")
}

/// Reads the first paragraph of `apt-cache show`.
fn parse_package(text: &str) -> Result<Package> {
    let paragraph = paragraphs(text).into_iter().next().context("apt-cache showed nothing")?;
    let field = |name: &str| {
        let value = value(&paragraph, name);
        value.map(str::to_owned).with_context(|| format!("apt-cache shows no {name}"))
    };
    let depends = value(&paragraph, "Depends").unwrap_or_default();
    // The first of alternatives, without the version.
    let name = |one: &str| one.split(['|', '(']).next().unwrap_or_default().trim().to_owned();
    Ok(Package {
        name: field("Package")?,
        version: field("Version")?,
        sha256: field("SHA256")?,
        size: field("Size")?.parse().context("apt-cache shows a Size that is no number")?,
        depends: depends.split(',').map(name).filter(|name| !name.is_empty()).collect(),
    })
}

/// One source of packages, in the form of a deb822 paragraph.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Source {
    fields: Vec<(String, String)>,
}

impl Source {
    /// The same source with other suites and components.
    pub(crate) fn with_suite(&self, suite: &str, component: &str) -> Self {
        let mut fields = self.fields.clone();
        for (name, field) in &mut fields {
            match name.to_ascii_lowercase().as_str() {
                "types" => *field = "deb".to_owned(),
                "suites" => *field = suite.to_owned(),
                "components" => *field = component.to_owned(),
                _ => {}
            }
        }
        Self { fields }
    }

    /// The paragraph's text.
    pub(crate) fn render(&self) -> String {
        self.fields.iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
    }

    /// Whether it offers binary packages of this suite and component.
    pub(crate) fn offers(&self, suite: &str, component: &str) -> bool {
        let has = |name: &str, word: &str| {
            value(&self.fields, name).is_some_and(|value| value.split_whitespace().any(|other| other == word))
        };
        has("types", "deb") && has("suites", suite) && has("components", component)
    }
}

/// The sources that the machine's apt is configured with.
pub(crate) fn machine_sources() -> Result<Vec<Source>> {
    let shell = command::output(Command::new("apt-config").args([
        "shell",
        "LIST",
        "Dir::Etc::sourcelist/f",
        "PARTS",
        "Dir::Etc::sourceparts/d",
    ]))?;
    let setting = |name: &str| {
        let value = shell.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(PathBuf::from(value.trim_matches('\'')))
    };
    let mut files: Vec<PathBuf> = setting("LIST").into_iter().collect();
    if let Some(entries) = setting("PARTS").and_then(|parts| fs::read_dir(parts).ok()) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let parse = match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => parse_deb822,
            Some("list") => parse_one_line,
            // apt ignores other names as well.
            _ => continue,
        };
        if let Ok(text) = fs::read_to_string(&file) {
            sources.extend(parse(&text));
        }
    }
    Ok(sources)
}

/// Reads a `.sources` file.
fn parse_deb822(text: &str) -> Vec<Source> {
    let enabled = |fields: &Vec<(String, String)>| {
        !value(fields, "enabled")
            .is_some_and(|value| matches!(value, "no" | "false" | "0" | "off" | "without"))
    };
    paragraphs(text).into_iter().filter(enabled).map(|fields| Source { fields }).collect()
}

/// Reads a `.list` file.
fn parse_one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let (kind, rest) = line.split_once(char::is_whitespace)?;
    let (options, rest) = match rest.trim_start().strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let components = words.collect::<Vec<_>>().join(" ");
    let mut fields = vec![
        ("Types".to_owned(), kind.to_owned()),
        ("URIs".to_owned(), uri.to_owned()),
        ("Suites".to_owned(), suite.to_owned()),
        ("Components".to_owned(), components),
    ];
    for option in options.split_whitespace() {
        let (name, value) = option.split_once('=')?;
        // The two formats name a few options differently, and separate values by commas and by blanks.
        let name = match name {
            "arch" => "Architectures",
            "lang" => "Languages",
            "target" => "Targets",
            name => name,
        };
        fields.push((name.to_owned(), value.replace(',', " ")));
    }
    Some(Source { fields })
}

/// Splits control text into paragraphs of (name, value). Further lines of a value keep their line ends and indents.
fn paragraphs(text: &str) -> Vec<Vec<(String, String)>> {
    let mut all = vec![Vec::<(String, String)>::new()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some(paragraph) = all.last_mut() else { continue };
        if line.trim().is_empty() {
            all.push(Vec::new());
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = paragraph.last_mut() {
                value.push('\n');
                value.push_str(line.trim_end());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            paragraph.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    all.retain(|paragraph| !paragraph.is_empty());
    all
}

fn value<'a>(paragraph: &'a [(String, String)], name: &str) -> Option<&'a str> {
    paragraph.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deb822_sources_are_read_and_changed() {
        let text = "\
# a comment
Types: deb deb-src
# one inside
URIs: http://mirror.invalid/debian
suites: stable stable-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Enabled: no
Types: deb
URIs: http://off.invalid/
Suites: stable
Components: main


Types: deb-src
URIs: http://src.invalid/
Suites: stable
Components: main
";
        let sources = parse_deb822(text);
        assert_eq!(sources.len(), 2);
        assert!(sources[0].offers("stable", "main") && sources[0].offers("stable-updates", "contrib"));
        assert!(!sources[0].offers("stable", "non-free") && !sources[0].offers("stab", "main"));
        assert!(!sources[1].offers("stable", "main"), "sources alone are no binary packages");
        assert_eq!(
            sources[0].with_suite("stable-backports", "main").render(),
            "Types: deb\nURIs: http://mirror.invalid/debian\nsuites: stable-backports\nComponents: main\n\
             Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"
        );
    }

    #[test]
    fn one_line_sources_are_read() {
        let sources = parse_one_line(
            "# deb http://off.invalid/ stable main\n\
             deb [arch=amd64,i386 signed-by=/k.gpg] http://a.invalid/debian stable main contrib # why\n\
             deb http://b.invalid/ ./\n\
             deb-src http://c.invalid/ stable main\n\
             broken\n",
        );
        assert_eq!(sources.len(), 3);
        assert!(sources[0].offers("stable", "contrib"));
        assert_eq!(
            sources[0].render(),
            "Types: deb\nURIs: http://a.invalid/debian\nSuites: stable\nComponents: main contrib\n\
             Architectures: amd64 i386\nsigned-by: /k.gpg\n"
        );
        assert!(!sources[2].offers("stable", "main"));
    }

    #[test]
    fn packages_are_read() {
        let package = parse_package(
            "Package: linux-image-cloud-amd64\nVersion: 1:2-3\nSize: 1504\nSHA256: abc\n\
             Depends: linux-image-6 (= 1:2-3), kmod | module-init-tools\nDescription: x\n more\n\n\
             Package: older\nVersion: 1\n",
        )
        .unwrap();
        assert_eq!((package.name.as_str(), package.size), ("linux-image-cloud-amd64", 1504));
        assert_eq!(package.depends, ["linux-image-6", "kmod"]);
        assert!(parse_package("").is_err());
        assert!(parse_package("Package: a\nVersion: 1\n").is_err(), "without a hash nothing can be checked");
    }
}
