//! A plan as text: its kernels in order, each with its equations, the rules that made it and those that nearly did.

use std::fmt;

use einfuse_graph::print_expr;

use super::{EqId, Kernel, Plan, Segment, Shape};

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
    /// An equation in the model's own words.
    pub fn equation_text(&self, eq: EqId) -> String {
        let equation = self.equations[eq];
        let out = equation.out;
        let name = format!("{}{}", self.graph.tensor(out).name, self.graph.axes_of(out));
        format!("{name} = {}", print_expr(&self.graph, equation.body))
    }

    fn kernels(&self, f: &mut fmt::Formatter<'_>, kernels: &[Kernel]) -> fmt::Result {
        for kernel in kernels {
            let shape = match kernel.shape {
                Shape::Rows => "rows",
                Shape::Contract(_) => "contract",
                Shape::Stream(_) => "stream",
            };
            writeln!(f, "  kernel {} ({shape})", kernel.name)?;
            for &eq in &kernel.equations {
                let state = self.states.get(&self.equations[eq].out);
                let state = state.map(|&s| format!(", appended to {}", self.graph.tensor(s).name));
                writeln!(f, "    {}{}", self.equation_text(eq), state.unwrap_or_default())?;
            }
            for remark in &kernel.applied {
                writeln!(f, "    + {}: {}", remark.rule, remark.text)?;
            }
            for remark in &kernel.declined {
                writeln!(f, "    - {}: {}", remark.rule, remark.text)?;
            }
        }
        Ok(())
    }
}
