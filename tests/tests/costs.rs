//! The constants that decide how tables are changed are what the bench has measured.

use pvmmu::cost::COSTS;
use serde::Deserialize;

/// Hundredths by which a constant may be away from what was measured.
const AWAY_MAX: u64 = 3;

/// A row of the bench, as far as it matters here.
#[derive(Deserialize)]
struct Row {
    operation: String,
    size: u64,
    instructions: u64,
}

/// What the bench has measured on Xen 4.17.
struct Measured(Vec<Row>);

impl Measured {
    fn new() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/baselines/xen-4.17.json");
        let text = std::fs::read_to_string(path).expect("the baseline is in the repository");
        Self(serde_json::from_str(&text).expect("rows of the bench"))
    }

    /// The instructions of the bare request `operation`, in all.
    fn bare(&self, operation: &str, size: u64) -> u64 {
        let name = format!("bare: {operation}");
        let row = self.0.iter().find(|row| row.operation == name && row.size == size);
        row.unwrap_or_else(|| panic!("the baseline has no row {name:?} of size {size}"))
            .instructions
    }

    /// What an element of a long request costs.
    fn element(&self, operation: &str) -> u64 {
        self.bare(operation, 512) / 512
    }

    /// What each entry of a full table adds to what an empty one costs.
    fn entry(&self, request: &str, access: &str) -> u64 {
        let full = self.bare(&format!("{request} table, 512 {access}"), 1);
        (full - self.bare(&format!("{request} table, empty"), 1)) / 512
    }
}

/// Each constant with what it stands for. Two have no row of their own: `store`, which Xen has no
/// part in, and `drop_table`.
fn constants(measured: &Measured) -> [(&'static str, u32, u64); 12] {
    let table = |request| measured.bare(request, 1);
    let change =
        measured.element("entry to read-only").midpoint(measured.element("entry to writable"));
    let step = table("flush of all TLBs");
    // A table that stays validated: what is left of the trap is the element.
    let link = table("link table, pinned").midpoint(table("unlink table, pinned")) - step;
    let linked = table("link table, pinned");
    [
        ("change", COSTS.change, change),
        ("fill", COSTS.fill, measured.element("fill entry, writable")),
        ("clear", COSTS.clear, measured.element("clear entry, writable")),
        ("validate", COSTS.validate, table("link table, empty") - linked),
        ("take_writable", COSTS.take_writable, measured.entry("link", "writable")),
        ("take_read_only", COSTS.take_read_only, measured.entry("link", "read-only")),
        ("release", COSTS.release, table("unlink table, empty") - linked),
        ("drop_writable", COSTS.drop_writable, measured.entry("unlink", "writable")),
        ("drop_read_only", COSTS.drop_read_only, measured.entry("unlink", "read-only")),
        ("access", COSTS.access, change),
        ("link", COSTS.link, link),
        ("step", COSTS.step, step),
    ]
}

#[test]
fn the_constants_of_the_cost_function_are_those_that_were_measured() {
    let measured = Measured::new();
    let away = |(name, constant, measured): (&str, u32, u64)| {
        let distance = u64::from(constant).abs_diff(measured);
        (distance * 100 > measured * AWAY_MAX)
            .then(|| format!("COSTS.{name} is {constant}, the bench has measured {measured}"))
    };
    let away: Vec<String> = constants(&measured).into_iter().filter_map(away).collect();
    assert_eq!(away, [""; 0], "more than {AWAY_MAX} % away: change pvmmu/src/cost.rs");
}
