//! A plan as text: its kernels in order, each with its equations, the rules that made it and those that nearly did.

use std::fmt;

use einfuse_graph::print_expr;

use super::{EqId, Kernel, Plan, Segment};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan {}", self.graph.name)?;
        for remark in &self.remarks {
            writeln!(f, "{}: {}", remark.rule, remark.text)?;
        }
        for segment in &self.segments {
            match segment {
                Segment::Once(kernels) if kernels.is_empty() => {}
                Segment::Once(kernels) => {
                    writeln!(f, "\nonce")?;
                    self.kernels(f, kernels)?;
                }
                Segment::Layers { carry, initial, bodies, order, .. } => {
                    let name = |t| &self.graph.tensor(t).name;
                    for (which, (kernels, result)) in bodies.iter().enumerate() {
                        let layers: Vec<String> =
                            (0..order.len()).filter(|&l| order[l] == which).map(|l| l.to_string()).collect();
                        let (carry, initial, result) = (name(*carry), name(*initial), name(*result));
                        writeln!(f, "\nlayers {}: {carry} from {initial}, then {result}", layers.join(" "))?;
                        self.kernels(f, kernels)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Plan {
    /// An equation in the model's own words, and the cache that its result goes into.
    pub fn equation_text(&self, eq: EqId) -> String {
        let equation = self.equations[eq];
        let out = equation.out;
        let name = format!("{}{}", self.graph.tensor(out).name, self.graph.axes_of(out));
        let cache = self.states.get(&out).map(|&cache| format!(", appended to {}", self.graph.tensor(cache).name));
        format!("{name} = {}{}", print_expr(&self.graph, equation.body), cache.unwrap_or_default())
    }

    /// A kernel as it stands in the plan's text: its equations, the rules that made it, and those that nearly did.
    pub fn kernel_text(&self, kernel: &Kernel) -> String {
        let mut text = format!("  kernel {} ({})\n", kernel.name, kernel.shape.name());
        for &eq in kernel.equations.iter().chain(&kernel.weights) {
            text += &format!("    {}\n", self.equation_text(eq));
        }
        for remark in &kernel.applied {
            text += &format!("    + {}: {}\n", remark.rule, remark.text);
        }
        for remark in &kernel.declined {
            text += &format!("    - {}: {}\n", remark.rule, remark.text);
        }
        text
    }

    fn kernels(&self, f: &mut fmt::Formatter<'_>, kernels: &[Kernel]) -> fmt::Result {
        kernels.iter().try_for_each(|kernel| f.write_str(&self.kernel_text(kernel)))
    }
}
