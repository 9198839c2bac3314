//! The picture as a file, for a talk or a page: readable on light and on dark ground, and by those who tell few colours apart.

use std::fmt::Write as _;

use super::class::Class;
use super::figures::Figures;
use super::grid::{Cell, Grid};
use super::subject::Subject;
use crate::ui::bytes;

/// The picture's width, and what is left free around it.
const WIDTH: usize = 960;
const MARGIN: usize = 40;
/// Cells of a row, their size, and where they begin.
const COLUMNS: usize = 64;
const CELL: usize = 12;
const LEFT: usize = 152;
/// The most rows of both pictures.
const ROWS: usize = 14;
const ROWS_IN_ORDER: usize = 6;

/// Colours of a palette that people with any kind of colour vision tell apart (Okabe and Ito's).
fn colour(class: Class) -> &'static str {
    match class {
        Class::Scattered => "#d55e00",
        Class::Short => "#e69f00",
        Class::Huge => "#56b4e9",
        Class::Long => "#009e73",
    }
}

/// A picture under construction: what is drawn next stands at `y`.
struct Page {
    body: String,
    y: usize,
}

impl Page {
    fn text(&mut self, x: usize, class: &str, anchor: &str, text: &str) {
        let (y, text) = (self.y, escaped(text));
        let _ = writeln!(
            self.body,
            r#"<text x="{x}" y="{y}" class="{class}" text-anchor="{anchor}">{text}</text>"#
        );
    }

    /// A heading, and what a cell is.
    fn heading(&mut self, text: &str, detail: &str) {
        self.y += 34;
        let (y, text, detail) = (self.y, escaped(text), escaped(detail));
        let _ = writeln!(
            self.body,
            r#"<text x="{MARGIN}" y="{y}" class="head">{text}<tspan class="soft" dx="10">{detail}</tspan></text>"#
        );
        self.y += 12;
    }

    /// The cells of a grid, with the address of each row. Rows without anything are left out, and it is said so.
    fn grid(&mut self, grid: &Grid) {
        let mut empty = 0;
        for (label, cells) in grid.rows() {
            if cells.iter().all(|cell| cell.bytes() == 0) {
                empty += 1;
                continue;
            }
            self.gap(&mut empty, grid);
            self.row(label, cells, grid.share);
        }
        self.gap(&mut empty, grid);
    }

    fn gap(&mut self, empty: &mut u64, grid: &Grid) {
        if *empty > 0 {
            let size = bytes(*empty * grid.columns as u64 * grid.share);
            self.y += CELL;
            self.text(LEFT, "soft", "start", &format!("{size} with nothing of it"));
            self.y += 4;
        }
        *empty = 0;
    }

    fn row(&mut self, label: u64, cells: &[Cell], share: u64) {
        let (y, size) = (self.y, CELL - 1);
        let (middle, right) = (y + CELL - 3, LEFT - 10);
        let _ = writeln!(
            self.body,
            r#"<text x="{right}" y="{middle}" class="mono" text-anchor="end">{label:#x}</text>"#
        );
        for (index, cell) in cells.iter().enumerate() {
            let x = LEFT + index * CELL;
            let Some(class) = cell.class() else {
                let _ = writeln!(
                    self.body,
                    r#"<rect x="{x}" y="{y}" width="{size}" height="{size}" rx="2" class="none"/>"#
                );
                continue;
            };
            // A cell with little in it is paler; never so pale that it is not seen.
            let full = cell.bytes() as f64 / share as f64;
            let opacity = 0.35 + 0.65 * full.sqrt().min(1.0);
            let colour = colour(class);
            let _ = writeln!(
                self.body,
                r#"<rect x="{x}" y="{y}" width="{size}" height="{size}" rx="2" fill="{colour}" fill-opacity="{opacity:.2}"/>"#
            );
        }
        self.y += CELL;
    }

    /// How much memory is in runs of which length.
    fn histogram(&mut self, figures: &Figures) {
        let most = figures.histogram.values().map(|bin| bin.bytes).max().unwrap_or(1).max(1);
        let room = WIDTH - MARGIN - LEFT - 220;
        self.y += 4;
        let top = self.y;
        for (power, bin) in figures.bins() {
            let (label, class) = (bytes(1 << power), Class::of(1 << power));
            let length =
                (bin.bytes as f64 / most as f64 * room as f64).max(if bin.bytes > 0 { 2.0 } else { 0.0 });
            let (y, base, colour, right) = (self.y, self.y + 12, colour(class), LEFT - 10);
            let _ = writeln!(
                self.body,
                r#"<text x="{right}" y="{base}" class="mono" text-anchor="end">{label}</text>"#
            );
            if bin.bytes > 0 {
                let _ = writeln!(
                    self.body,
                    r#"<rect x="{LEFT}" y="{y}" width="{length:.1}" height="14" rx="2" fill="{colour}"/>"#
                );
                let x = LEFT as f64 + length + 8.0;
                let runs = if bin.runs == 1 { "run" } else { "runs" };
                let share = 100.0 * bin.bytes as f64 / figures.bytes.max(1) as f64;
                let _ = writeln!(
                    self.body,
                    r#"<text x="{x:.1}" y="{base}" class="soft">{} in {} {runs} ({share:.0} %)</text>"#,
                    bytes(bin.bytes),
                    bin.runs
                );
            }
            self.y += 19;
        }
        let (bottom, x) = (self.y, LEFT - 1);
        let _ = writeln!(self.body, r#"<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom}" class="axis"/>"#);
    }

    /// What the colours mean.
    fn legend(&mut self) {
        self.y += 34;
        self.text(MARGIN, "head", "start", "A run of");
        let mut x = LEFT;
        let y = self.y - 10;
        for class in Class::ALL {
            let colour = colour(class);
            let _ = writeln!(
                self.body,
                r#"<rect x="{x}" y="{y}" width="11" height="11" rx="2" fill="{colour}"/>"#
            );
            self.text(x + 18, "ink", "start", class.name());
            x += 34 + 8 * class.name().len();
        }
        let _ = writeln!(self.body, r#"<rect x="{x}" y="{y}" width="11" height="11" rx="2" class="none"/>"#);
        self.text(x + 18, "ink", "start", "nothing of it");
        self.y += 18;
        self.text(
            LEFT,
            "soft",
            "start",
            "A cell has the colour of what most of it is; a pale one is not full.",
        );
    }
}

/// The picture.
pub(super) fn picture(subject: &Subject) -> String {
    let figures = Figures::of(subject);
    let runs: Vec<_> = subject.runs().copied().collect();
    let mut page = Page { body: String::new(), y: 52 };
    page.text(MARGIN, "title", "start", &format!("How contiguous is {}?", subject.title));
    page.y += 24;
    page.text(MARGIN, "ink", "start", &subject.detail);
    page.y += 46;
    let percent = format!("{:.0} %", 100.0 * figures.share_in_huge_runs());
    let facts = [
        (bytes(figures.bytes), "in memory"),
        (figures.runs.to_string(), if figures.runs == 1 { "contiguous run" } else { "contiguous runs" }),
        (bytes(figures.longest), "the longest"),
        (percent, "in runs of 2 MiB and more"),
    ];
    for (index, (value, what)) in facts.iter().enumerate() {
        let x = MARGIN + index * 225;
        page.text(x, "value", "start", value);
        page.y += 20;
        page.text(x, "soft", "start", what);
        page.y -= 20;
    }
    page.y += 28;
    if !runs.is_empty() {
        let order = Grid::in_order(&runs, COLUMNS, ROWS_IN_ORDER);
        page.heading("As the process has it", &format!("without holes; a cell is {}", bytes(order.share)));
        page.grid(&order);
        let physical = Grid::physical(&runs, COLUMNS, ROWS);
        let space = if subject.simulated { "In simulated physical space" } else { "In physical space" };
        page.heading(
            space,
            &format!("a cell is {}, a row {}", bytes(physical.share), bytes(physical.share * COLUMNS as u64)),
        );
        page.grid(&physical);
        page.legend();
        page.heading("Memory by length of run", "each row from this length on, up to twice that");
        page.histogram(&figures);
    }
    let rest = figures.beside();
    page.y += 28;
    page.text(MARGIN, "soft", "start", &rest.join("; "));
    let height = page.y + 28;
    let (title, detail) = (escaped(&subject.title), escaped(&subject.detail));
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">
<title>How contiguous is {title}?</title>
<desc>{detail}: {} in {} runs, the longest {}, {:.0} % in runs of 2 MiB and more</desc>
<style>
text {{ font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif }}
.title {{ font-size: 24px; font-weight: 600 }} .head {{ font-size: 15px; font-weight: 600 }} .value {{ font-size: 28px; font-weight: 600 }}
.mono {{ font: 11px ui-monospace, "DejaVu Sans Mono", monospace }}
.ground {{ fill: #ffffff }} .title, .head, .value, .ink {{ fill: #1f2328 }} .soft, .mono {{ fill: #59636e }}
tspan.soft {{ font-size: 13px; font-weight: 400 }}
.none {{ fill: #eaeef2 }} .axis {{ stroke: #8c959f; stroke-width: 1 }}
@media (prefers-color-scheme: dark) {{
.ground {{ fill: #0d1117 }} .title, .head, .value, .ink {{ fill: #f0f6fc }} .soft, .mono {{ fill: #9198a1 }} .none {{ fill: #212830 }}
}}
</style>
<rect width="{WIDTH}" height="{height}" class="ground"/>
{}</svg>
"##,
        bytes(figures.bytes),
        figures.runs,
        bytes(figures.longest),
        100.0 * figures.share_in_huge_runs(),
        page.body
    )
}

/// Text that is no markup, and that XML allows.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            _ if letter.is_control() => escaped.push('?'),
            _ => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use noiommu::Contiguity;

    use super::*;

    #[test]
    fn it_is_a_picture_of_all_cells() {
        let mut subject = Subject::buffer(1 << 20, Contiguity::Pages, true).unwrap();
        subject.title = "a <b> & \"c\"\u{1b}".to_owned();
        let picture = picture(&subject);
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        assert!(picture.contains("How contiguous is a &lt;b&gt; &amp; &quot;c&quot;??"), "{picture}");
        // Every element is closed, and the cells in order are those of the memory: 256 pages.
        let cells = picture.matches(r#"fill-opacity="1.00""#).count();
        assert!(cells >= 256, "{cells}");
        for element in ["text", "tspan", "style", "title", "desc"] {
            let open = picture.matches(&format!("<{element}")).count();
            assert_eq!(open, picture.matches(&format!("</{element}>")).count(), "{element}");
        }
        assert!(!picture.contains('\u{1b}'));
    }
}
