//! Plots as SVG text, made without any library: dots on a logarithmic scale, and lines over sizes.

use std::fmt::Write;

/// One named series; `None` where nothing was measured.
#[derive(Clone, Debug)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// One value for each row or position.
    pub values: Vec<Option<f64>>,
}

/// Okabe and Ito's colours: distinct for colour-blind readers. The last series of a plot is ours and comes out first.
const COLOURS: [&str; 8] =
    ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5a5a5a", "#000000"];
/// Smaller ratios are drawn at the edge, so that one of them does not squeeze all others together.
const LEAST_RATIO: f64 = 0.005;
const ROW: f64 = 20.0;
const LEFT: f64 = 230.0;
const WIDTH: f64 = 980.0;
const RIGHT: f64 = 30.0;

fn colour(index: usize) -> &'static str {
    COLOURS.get(index % COLOURS.len()).copied().unwrap_or("#000000")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A logarithmic axis over all values, widened to whole steps of 1, 2, 5.
#[derive(Clone, Debug)]
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(series: &[Series], from: f64, to: f64) -> Self {
        let values = series.iter().flat_map(|s| s.values.iter().flatten()).copied().filter(|v| *v > 0.0);
        let (low, high) = values.fold((1.0_f64, 1.0_f64), |(l, h), v| (l.min(v), h.max(v)));
        Self { low: (low * 0.85).max(LEAST_RATIO), high: high * 1.2, from, to }
    }

    /// As `over`, but 1 need not be on it.
    fn tight(series: &[Series], from: f64, to: f64) -> Self {
        let values = series.iter().flat_map(|s| s.values.iter().flatten()).copied().filter(|v| *v > 0.0);
        let (low, high) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(l, h), v| (l.min(v), h.max(v)));
        Self { low: low.min(high) * 0.7, high: high * 1.4, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        self.from + share * (self.to - self.from)
    }

    /// Marks at 1, 2, 5 times powers of ten; only powers of ten if there would be too many.
    fn ticks(&self) -> Vec<f64> {
        let decades = (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
        let steps: &[f64] = if (self.high / self.low).log10() > 3.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let all = decades.flat_map(|d| steps.iter().map(move |s| s * 10.0_f64.powi(d)));
        all.filter(|v| *v >= self.low && *v <= self.high).collect()
    }
}

fn number(value: f64) -> String {
    if value >= 1.0 {
        format!("{}", (value * 10.0).round() / 10.0)
    } else {
        format!("{value:.6}").trim_end_matches('0').to_owned()
    }
}

fn open(height: f64, title: &str, subtitle: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"20\" y=\"26\" font-size=\"17\" font-weight=\"bold\">{}</text>\n\
         <text x=\"20\" y=\"45\" fill=\"#555555\">{}</text>\n",
        escape(title),
        escape(subtitle)
    )
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, colour: &str, words: &str) {
    let words = escape(words);
    // Writing to a String cannot fail.
    writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{words}</text>"
    )
    .ok();
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), style: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    writeln!(svg, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {style}/>").ok();
}

fn dot(svg: &mut String, x: f64, y: f64, radius: f64, colour: &str, title: &str) {
    let title = escape(title);
    writeln!(
        svg,
        "<g><title>{title}</title><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{colour}\"/></g>"
    )
    .ok();
}

/// Names and colours of the series from `y` on, in as many lines as they need; returns how far down they reach.
fn legend(svg: &mut String, series: &[Series], y: f64) -> f64 {
    let (mut x, mut y) = (20.0, y);
    for (i, one) in series.iter().enumerate() {
        let width = 40.0 + 7.2 * one.name.len() as f64;
        if x > 20.0 && x + width > WIDTH {
            (x, y) = (20.0, y + ROW);
        }
        dot(svg, x + 5.0, y - 4.0, 5.0, colour(i), &one.name);
        text(svg, x + 15.0, y, "start", "#222222", &one.name);
        x += width;
    }
    y
}

/// A dot plot of ratios: one row for each label, left of 1 is faster. Rows whose label is empty leave a gap.
pub fn ratios(title: &str, subtitle: &str, labels: &[String], series: &[Series]) -> String {
    let mut names = String::new();
    let top = legend(&mut names, series, 70.0) + 30.0;
    let bottom = top + ROW * labels.len() as f64;
    let axis = Axis::over(series, LEFT, WIDTH - RIGHT);
    let mut svg = open(bottom + 40.0, title, subtitle);
    svg.push_str(&names);
    for row in (0..labels.len()).step_by(2) {
        let (y, width) = (top + ROW * row as f64, WIDTH - 20.0);
        writeln!(svg, "<rect x=\"10\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{ROW}\" fill=\"#f3f4f6\"/>")
            .ok();
    }
    for tick in axis.ticks() {
        let x = axis.at(tick);
        let one = (tick - 1.0).abs() < 1e-9;
        let style = if one { "stroke=\"#333333\" stroke-width=\"1.6\"" } else { "stroke=\"#dddddd\"" };
        line(&mut svg, (x, top - 6.0), (x, bottom), style);
        text(&mut svg, x, top - 10.0, "middle", "#555555", &number(tick));
        text(&mut svg, x, bottom + 16.0, "middle", "#555555", &number(tick));
    }
    for (row, label) in labels.iter().enumerate() {
        let y = top + ROW * (row as f64 + 0.5);
        text(&mut svg, LEFT - 14.0, y + 4.0, "end", "#222222", label);
        // Ours is the first series; drawn last, it stays visible.
        for (i, one) in series.iter().enumerate().rev() {
            if let Some(Some(value)) = one.values.get(row) {
                let radius = if i == 0 { 5.5 } else { 4.5 };
                dot(
                    &mut svg,
                    axis.at(*value),
                    y,
                    radius,
                    colour(i),
                    &format!("{label}, {}: {value:.3}", one.name),
                );
            }
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Lines over positions (sizes, numbers of layers), values on a logarithmic scale.
pub fn lines(title: &str, subtitle: &str, positions: &[String], series: &[Series]) -> String {
    let mut names = String::new();
    let top = legend(&mut names, series, 70.0) + 30.0;
    let (bottom, left) = (top + 340.0, 90.0);
    let axis = Axis::tight(series, bottom, top);
    let step = (WIDTH - left - 60.0) / positions.len().saturating_sub(1).max(1) as f64;
    let mut svg = open(bottom + 50.0, title, subtitle);
    svg.push_str(&names);
    for tick in axis.ticks() {
        let y = axis.at(tick);
        line(&mut svg, (left, y), (WIDTH - RIGHT, y), "stroke=\"#dddddd\"");
        text(&mut svg, left - 8.0, y + 4.0, "end", "#555555", &number(tick));
    }
    for (i, position) in positions.iter().enumerate() {
        text(&mut svg, left + 15.0 + step * i as f64, bottom + 22.0, "middle", "#222222", position);
    }
    for (i, one) in series.iter().enumerate().rev() {
        let points: Vec<(f64, f64, f64)> = one
            .values
            .iter()
            .enumerate()
            .filter_map(|(p, v)| v.map(|v| (left + 15.0 + step * p as f64, axis.at(v), v)))
            .collect();
        for pair in points.windows(2) {
            if let [(x1, y1, _), (x2, y2, _)] = pair {
                let style = format!("stroke=\"{}\" stroke-width=\"2\"", colour(i));
                line(&mut svg, (*x1, *y1), (*x2, *y2), &style);
            }
        }
        for (x, y, value) in points {
            dot(&mut svg, x, y, 4.5, colour(i), &format!("{}: {value:.3}", one.name));
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Horizontal bars, for a handful of named values.
pub fn bars(title: &str, subtitle: &str, unit: &str, values: &[(String, f64)]) -> String {
    let top = 65.0;
    let largest = values.iter().map(|(_, v)| *v).fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = open(top + 28.0 * values.len() as f64 + 20.0, title, subtitle);
    for (i, (name, value)) in values.iter().enumerate() {
        let y = top + 28.0 * i as f64;
        let width = (WIDTH - LEFT - 130.0) * value / largest;
        let fill =
            if name.starts_with("runner") || name.starts_with("unionfs") { colour(0) } else { "#8fb4cf" };
        text(&mut svg, LEFT - 10.0, y + 15.0, "end", "#222222", name);
        writeln!(svg, "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"20\" fill=\"{fill}\"/>")
            .ok();
        text(&mut svg, LEFT + width + 8.0, y + 15.0, "start", "#222222", &format!("{value:.2} {unit}"));
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_within_the_axis() {
        let axis = Axis { low: 0.3, high: 6.0, from: 0.0, to: 1.0 };
        assert_eq!(axis.ticks(), [0.5, 1.0, 2.0, 5.0]);
    }

    #[test]
    fn names_cannot_break_the_document() {
        let series = [Series { name: "a<b&c".into(), values: vec![Some(2.0)] }];
        let svg = ratios("t", "s", &["row".into()], &series);
        assert!(svg.contains("a&lt;b&amp;c") && !svg.contains("a<b"));
    }
}
