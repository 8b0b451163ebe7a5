//! Line charts as SVG, for the documentation: some curves over two axes that begin at zero.

use std::fmt::Write;

/// Size of the picture, and of the space around the curves, in pixels.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 52.0;

/// Colours that most eyes can tell apart on white (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// One curve.
pub struct Curve {
    /// Text in the legend.
    pub name: String,
    /// Points in ascending order of the first number.
    pub points: Vec<(f64, f64)>,
}

/// A chart.
pub struct Chart {
    /// Title above the curves.
    pub title: String,
    /// Label of the horizontal axis.
    pub x: String,
    /// Label of the vertical axis.
    pub y: String,
    /// Whether the horizontal axis is logarithmic; it then begins at one.
    pub log_x: bool,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// The next round number, and the step between some five marks up to it.
fn round_up(most: f64) -> (f64, f64) {
    let raw = (most / 5.0).max(1e-9);
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].iter().map(|m| m * power).find(|step| *step >= raw * 0.999);
    let step = step.unwrap_or(power * 10.0);
    ((most / step).ceil() * step, step)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Chart {
    fn most(&self, of: impl Fn(&(f64, f64)) -> f64) -> f64 {
        self.curves.iter().flat_map(|curve| &curve.points).map(of).fold(0.0, f64::max)
    }

    /// Marks of the horizontal axis, and the function from a number to its place, from 0 to 1.
    fn horizontal(&self) -> (Vec<f64>, Box<dyn Fn(f64) -> f64>) {
        let most = self.most(|point| point.0);
        if self.log_x {
            let decades = most.max(10.0).log10().ceil();
            let marks = (0..=decades as i32).map(|power| 10f64.powi(power)).collect();
            return (marks, Box::new(move |x| x.max(1.0).log10() / decades));
        }
        let (end, step) = round_up(most);
        let marks = (0..=(end / step).round() as u32).map(|n| f64::from(n) * step).collect();
        (marks, Box::new(move |x| x / end))
    }

    /// The picture as SVG text.
    pub fn to_svg(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("a string takes everything");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let (marks, place) = self.horizontal();
        let (end, step) = round_up(self.most(|point| point.1));
        let x = |value: f64| LEFT + place(value) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - value / end * (HEIGHT - TOP - BOTTOM);
        writeln!(
            out,
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="{LEFT}" y="24" font-size="14">{}</text>"##,
            escaped(&self.title)
        )?;
        for n in 0..=(end / step).round() as u32 {
            let (value, at) = (f64::from(n) * step, y(f64::from(n) * step));
            writeln!(
                out,
                r##"<path d="M{LEFT} {at:.1}H{:.1}" stroke="#dddddd"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"##,
                WIDTH - RIGHT,
                LEFT - 8.0,
                at + 4.0,
                number(value)
            )?;
        }
        for value in marks {
            let at = x(value);
            writeln!(
                out,
                r##"<path d="M{at:.1} {TOP}V{:.1}" stroke="#eeeeee"/><text x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"##,
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 18.0,
                number(value)
            )?;
        }
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        writeln!(
            out,
            r#"<text x="{middle:.1}" y="{:.1}" text-anchor="middle">{}</text>
<text transform="translate(18 {:.1}) rotate(-90)" text-anchor="middle">{}</text>"#,
            HEIGHT - 14.0,
            escaped(&self.x),
            (TOP + HEIGHT - BOTTOM) / 2.0,
            escaped(&self.y)
        )?;
        for (n, curve) in self.curves.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let points: Vec<String> =
                curve.points.iter().map(|(px, py)| format!("{:.1},{:.1}", x(*px), y(*py))).collect();
            let legend = TOP + 8.0 + 20.0 * n as f64;
            writeln!(
                out,
                r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>
<path d="M{:.1} {legend:.1}h18" stroke="{colour}" stroke-width="2"/><text x="{:.1}" y="{:.1}">{}</text>"#,
                points.join(" "),
                WIDTH - RIGHT + 12.0,
                WIDTH - RIGHT + 36.0,
                legend + 4.0,
                escaped(&curve.name)
            )?;
        }
        writeln!(out, "</svg>")
    }
}

/// A number in the form in which a mark shows it.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_its_curves_its_marks_and_no_markup_of_its_texts() {
        let curve = Curve { name: "a<b".into(), points: vec![(1.0, 0.0), (10.0, 60.0), (1000.0, 100.0)] };
        let chart = Chart {
            title: "t & u".into(),
            x: "leaves".into(),
            y: "%".into(),
            log_x: true,
            curves: vec![curve],
        };
        let svg = chart.to_svg();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("t &amp; u") && svg.contains("a&lt;b"));
        // Points at the left bottom, a third of the way, and the right top.
        assert!(svg.contains(r#"points="64.0,308.0 232.7,147.2 570.0,40.0""#), "{svg}");
        assert!(["&gt;1<", ">10<", ">100<", ">1000<"][1..].iter().all(|mark| svg.contains(mark)));
        assert_eq!(round_up(0.73), (0.8, 0.2));
        assert_eq!(number(2.50), "2.5");
    }
}
