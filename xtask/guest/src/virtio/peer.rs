//! The kernel's side of the wire: its own card and its own stack, which ping our host and fetch its page.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::disk::child;
use super::{driver, host};
use crate::matrix::driver::PATIENCE;
use crate::matrix::{bind, unbind};

/// The kernel's address on the wire.
const ADDRESS: &str = "10.67.89.1";
/// How many pings; every third is longer than a byte can count.
const PINGS: u64 = 6;
/// How many times the page is fetched.
const FETCHES: u64 = 2;

/// One provider's turn: our host on one card, the kernel on the other.
pub(super) fn talk(ours: &str, theirs: &str, provider: &str, turn: u64) -> Result<Value> {
    let interface = interface(theirs)?;
    // Of our own the kernel had an interface, and will again.
    self::interface(ours)?;
    bind(ours, provider)?;
    run("ip", &["address", "flush", "dev", &interface])?;
    run("ip", &["address", "add", &format!("{ADDRESS}/{}", host::NETWORK), "dev", &interface])?;
    run("ip", &["link", "set", &interface, "up"])?;
    let mut host = driver(provider, "serve", ours, turn).stdin(Stdio::piped()).spawn().context("our host")?;
    let told = converse(&mut host, turn);
    // Its input ends, and so it does.
    drop(host.stdin.take());
    let account = ended(host);
    let told = match (told, account) {
        (Ok(mut told), Ok(account)) => {
            told["ours"] = account;
            told
        }
        // What it says itself explains what was seen of it.
        (_, Err(error)) => return Err(error),
        (Err(error), _) => return Err(error),
    };
    run("ip", &["link", "set", &interface, "down"])?;
    unbind(ours)?;
    self::interface(ours)?;
    Ok(told)
}

/// Pings it and fetches its page.
fn converse(host: &mut Child, seed: u64) -> Result<Value> {
    let mut output = BufReader::with_capacity(1, host.stdout.take().context("our host has no output")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    host.stdout = Some(output.into_inner());
    ensure!(line == "ready\n", "our host says {line:?}");
    let address = host::ADDRESS.map(|byte| byte.to_string()).join(".");
    let mut replies = 0;
    for number in 1..=PINGS {
        let size = if number % 3 == 0 { "1400" } else { "56" };
        let text = run("ping", &["-c", "1", "-W", "10", "-s", size, &address])?;
        replies += u64::from(text.contains("1 packets received"));
    }
    let page = host::page(seed);
    for _ in 0..FETCHES {
        let (head, fetched) = fetch("/")?;
        let length = format!("Content-Length: {}", page.len());
        ensure!(head.starts_with("HTTP/1.0 200 OK\r\n") && head.lines().any(|line| line == length), "{head}");
        let wrong = fetched.iter().zip(&page).position(|(found, right)| found != right);
        ensure!(
            fetched.len() == page.len() && wrong.is_none(),
            "{} bytes of {} were fetched, and another one at {wrong:?}",
            fetched.len(),
            page.len()
        );
    }
    // There is no other page.
    let (head, _) = fetch("/other")?;
    ensure!(head.starts_with("HTTP/1.0 404 "), "{head}");
    Ok(json!({"pings": PINGS, "replies": replies, "fetched": FETCHES, "page": page.len()}))
}

/// Asks our host for a page, by the kernel's own TCP: the head of the answer, and what it is about. (Not by busybox's `wget`, which as
/// a static program crashes in the C library's look-up of addresses.)
fn fetch(path: &str) -> Result<(String, Vec<u8>)> {
    let mut connection = TcpStream::connect_timeout(&(host::ADDRESS, host::PORT).into(), PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    // In two parts, as a slow client's.
    connection.write_all(b"GET ")?;
    connection.write_all(format!("{path} HTTP/1.0\r\nHost: ours\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).context("fetching a page")?;
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n").context("an answer without a head")?;
    let page = answer.split_off(end + 4);
    Ok((String::from_utf8(answer).context("a head")?, page))
}

/// Waits for its end; what it tells.
fn ended(mut host: Child) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    while host.try_wait()?.is_none() {
        if Instant::now() > deadline {
            let _ = host.kill();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut output = String::new();
    if let Some(mut from) = host.stdout.take() {
        from.read_to_string(&mut output)?;
    }
    let ran = host.wait_with_output()?;
    ensure!(
        ran.status.success(),
        "our host: {}: {}",
        ran.status,
        String::from_utf8_lossy(&ran.stderr).trim()
    );
    serde_json::from_str(&output).with_context(|| format!("our host tells no JSON: {output:?}"))
}

/// Waits for the interface that the kernel makes of a card; its name.
fn interface(address: &str) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(name) = child(address, "net") {
            return Ok(name);
        }
        ensure!(Instant::now() < deadline, "the kernel's driver makes no interface of {address}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a program; what it says.
fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let ran = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    ensure!(
        ran.status.success(),
        "{program} {}: {}: {} {said}",
        arguments.join(" "),
        ran.status,
        String::from_utf8_lossy(&ran.stderr).trim()
    );
    Ok(said)
}
