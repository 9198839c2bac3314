//! Kernels for guests: stock ones from the distribution's packages, kept in the cache by what they contain.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::apt::{self, Apt, Package};
use super::witness::to_hex;
use crate::command;
use crate::project::Project;
use crate::ui::Work;

/// The package that always depends on the newest kernel for cloud machines: small, and it boots without modules.
const NEWEST: &str = "linux-image-cloud-amd64";

/// A kernel that a guest can boot.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// What `uname -r` says in the guest.
    pub(crate) release: String,
    /// The image to boot.
    pub(crate) image: PathBuf,
    /// The directory with its modules, if it has any.
    pub(crate) modules: Option<PathBuf>,
    /// Where it comes from, for people.
    pub(crate) origin: String,
}

/// A kernel of the distribution: of the machine's own apt, or of `suite` on the machine's own mirror.
pub(crate) fn stock(project: &Project, suite: Option<&str>) -> Result<Kernel> {
    let get = |apt: &Apt| newest(apt)?.map(|package| cached(project, apt, &package)).transpose();
    with_lists(project, suite, get)?.with_context(|| {
        let whose = suite.map_or("this machine's apt".to_owned(), |suite| format!("suite {suite}"));
        format!("{whose} has no {NEWEST}: guests boot Debian's kernels for amd64")
    })
}

/// Gets something out of the package lists of the machine's own apt or of `suite`, whichever lists serve first; nothing
/// where even fresh ones do not know it. Only with fresh lists does a failure of `get` count.
pub(super) fn with_lists<T>(
    project: &Project,
    suite: Option<&str>,
    get: impl Fn(&Apt) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let own = match suite {
        None => {
            // The machine's own lists first. On a machine that never ran `apt-get update` they are empty; on one that did
            // so long ago they name a package that the mirror no longer has.
            if let Ok(Some(found)) = get(&Apt::machine()) {
                return Ok(Some(found));
            }
            Apt::private(&project.cache.join("apt/machine"), None)?
        }
        Some(suite) => {
            let (suite, source) = source_of(suite)?;
            Apt::private(&project.cache.join("apt").join(&suite), Some(&source))?
        }
    };
    // Our own lists are fetched only when they do not serve, so that what is cached needs no network.
    if let Ok(Some(found)) = get(&own) {
        return Ok(Some(found));
    }
    own.update()?;
    get(&own)
}

/// The kernel that the newest-kernel package depends on now.
fn newest(apt: &Apt) -> Result<Option<Package>> {
    let _work = Work::start("looking up the stock kernel");
    let Some(meta) = apt.candidate(NEWEST)? else { return Ok(None) };
    let name = meta.depends.iter().find(|name| name.starts_with("linux-image-"));
    let name = name.with_context(|| format!("{NEWEST} {} depends on no kernel", meta.version))?;
    apt.candidate(name)
}

/// Finds a source in the machine's configuration that has `wanted`, or stands beside it, and points it there.
///
/// `backports` stands for the backports of the machine's own release.
pub(super) fn source_of(wanted: &str) -> Result<(String, String)> {
    ensure!(
        !wanted.is_empty() && wanted.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
        "{wanted:?} is no name of a suite"
    );
    let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let release = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let release = release.context("/etc/os-release names no VERSION_CODENAME")?.trim_matches('"');
    let suite = if wanted == "backports" { format!("{release}-backports") } else { wanted.to_owned() };
    let base = suite.split('-').next().unwrap_or(&suite);
    let sources = apt::machine_sources()?;
    // Backports lie beside their base suite on every mirror, and all releases beside each other; security updates do not,
    // and so are no base.
    let source = [suite.as_str(), base, release]
        .iter()
        .find_map(|suite| sources.iter().find(|source| source.offers(suite, "main")));
    let Some(source) = source else {
        bail!(
            "no source of this machine's apt offers {base} or {release}: there is no mirror known for {suite}"
        );
    };
    Ok((suite.clone(), source.with_suite(&suite, "main").render()))
}

/// The unpacked kernel, from the cache or put there now.
fn cached(project: &Project, apt: &Apt, package: &Package) -> Result<Kernel> {
    let dir = home(project, package)?;
    if !dir.is_dir() {
        fetch(project, apt, package)?;
    }
    let release = package.name.strip_prefix("linux-image-").unwrap_or(&package.name).to_owned();
    let image = dir.join("boot").join(format!("vmlinuz-{release}"));
    ensure!(image.is_file(), "{} {} holds no /boot/vmlinuz-{release}", package.name, package.version);
    let modules = Some(dir.join("lib/modules").join(&release));
    Ok(Kernel { release, image, modules, origin: format!("{} {}", package.name, package.version) })
}

/// Where a package is unpacked: keyed by its content.
fn home(project: &Project, package: &Package) -> Result<PathBuf> {
    let hash = package.sha256.get(..16).context("apt tells a SHA-256 that is too short")?;
    Ok(project.cache.join("kernels").join(format!("{}-{hash}", package.name)))
}

/// Downloads, checks and unpacks.
fn fetch(project: &Project, apt: &Apt, package: &Package) -> Result<()> {
    let home = home(project, package)?;
    // Beside its place, so that it gets there by one rename: an interrupted run leaves no half kernel behind, and of two
    // runs at once either one wins.
    let scratch = home.with_extension(format!("partial-{}", process::id()));
    let result = (|| {
        let (download, tree) = (scratch.join("download"), scratch.join("tree"));
        fs::create_dir_all(&download)?;
        let deb = apt.download(package, &download)?;
        // apt has checked this already, down from the archive's signature; the hash names our directory, so it is worth
        // the 0.1 s to be sure.
        let hash = sha256(&deb)?;
        ensure!(hash == package.sha256, "{} has SHA-256 {hash}, not {}", deb.display(), package.sha256);
        let work = Work::start(format!("unpacking {}", package.name));
        command::output(Command::new("dpkg-deb").arg("--extract").args([&deb, &tree]))?;
        work.finish();
        match fs::rename(&tree, &home) {
            Err(_) if home.is_dir() => Ok(()),
            renamed => renamed.context("moving the unpacked kernel to its place"),
        }
    })();
    let _ = fs::remove_dir_all(&scratch);
    result
}

pub(super) fn sha256(file: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(file)?, &mut hash)?;
    Ok(to_hex(&hash.finalize()))
}
