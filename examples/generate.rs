//! Continues a text: `cargo run --release --example generate [FOLDER [PROMPT]]`.

use std::env;
use std::error::Error;
use std::io::{self, Write};

use einfuse::{Generate, Sampling, Settings};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let model = match arguments.next() {
        Some(folder) => einfuse::load(folder, Settings::default())?,
        None => einfuse::load_embedded(Settings::default())?,
    };
    let prompt = arguments.next().unwrap_or("ROMEO:".to_owned());

    let sampling = Sampling { temperature: 0.8, top_k: 40, seed: 1, ..Sampling::default() };
    let options = Generate { sampling, limit: Some(100), ..Generate::default() };
    let mut session = model.session();
    print!("{prompt}");
    for token in session.generate(&prompt, &options)? {
        print!("{}", token?.text);
        io::stdout().flush()?;
    }
    println!();

    let summary = session.summary();
    println!("\n{} tokens, {:.0} a second", summary.generated_tokens, summary.decode_rate());
    Ok(())
}
