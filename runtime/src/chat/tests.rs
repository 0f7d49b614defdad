use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Golden {
    chats: Vec<Vec<Said>>,
    templates: Vec<Rendered>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: String,
}

#[derive(Deserialize)]
struct Rendered {
    name: String,
    template: String,
    renders: Vec<Render>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Render {
    Text(String),
    Refusal(String),
}

fn template(template: &str) -> Result<Template, Error> {
    let (begin, end) = (Some("<s>".into()), Some("</s>".into()));
    Template::new(Chat { file: "x/chat_template.jinja".into(), template: template.into(), begin, end })
}

fn user(text: &str) -> Message {
    Message { role: Role::User, content: text.into() }
}

#[test]
fn chats_become_the_reference_s_texts() {
    let golden: Golden = serde_json::from_str(include_str!("../../tests/data/chats.json")).unwrap();
    let message = |said: &Said| {
        let role = match said.role.as_str() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => panic!("{other}"),
        };
        Message { role, content: said.content.clone() }
    };
    let chats: Vec<Vec<Message>> = golden.chats.iter().map(|chat| chat.iter().map(message).collect()).collect();
    assert_eq!((chats.len(), golden.templates.len()), (4, 7));
    for Rendered { name, template: text, renders } in golden.templates {
        let template = template(&text).unwrap();
        assert_eq!(renders.len(), chats.len());
        for (messages, expected) in chats.iter().zip(renders) {
            match (template.render(messages), expected) {
                (Ok(text), Render::Text(expected)) => assert_eq!(text, expected, "{name}"),
                (Err(error), Render::Refusal(message)) => assert_eq!(
                    error.to_string(),
                    format!("x/chat_template.jinja: the chat template refuses these messages: {message}")
                ),
                (text, _) => panic!("{name}: {text:?}"),
            }
        }
    }
}

#[test]
fn the_day_is_known() {
    let text = template("{{ strftime_now('%Y-%m-%d|%d %B %Y|%H:%M') }}").unwrap().render(&[]).unwrap();
    let parts: Vec<&str> = text.split('|').collect();
    assert_eq!(parts.len(), 3, "{text}");
    assert_eq!(parts[0].split('-').map(str::len).collect::<Vec<_>>(), [4, 2, 2], "{text}");
    assert!(parts[1].ends_with(&parts[0][..4]) && parts[1].starts_with(&parts[0][8..]), "{text}");
}

#[test]
fn what_is_no_template_is_named() {
    let cases = [
        ("{% if %}", "does not work in line 1: syntax error: "),
        ("a\n{{ messages[0].content", "does not work in line 2: syntax error: "),
        ("{% for m in messages %}", "does not work in line 1: syntax error: "),
        ("a\n\n{{ messages[5].content.text }}", "does not work in line 3: undefined value"),
        ("{{ messages | no_such }}", "does not work in line 1: unknown filter: "),
        ("{{ no_such() }}", "does not work in line 1: unknown function: "),
        ("{{ 'a'.no_such() }}", "does not work in line 1: unknown method: "),
        ("{% include 'other' %}", "does not work in line 1: "),
        ("{{ strftime_now('%!') }}", "does not work in line 1: invalid operation: strftime_now: "),
        (
            "{{ messages | tojson(indent=70000) }}",
            "does not work in line 1: invalid operation: `indent` is 70000, at most 64",
        ),
        ("{{ messages | tojson(sort=1) }}", "does not work in line 1: too many arguments: "),
        ("{{ raise_exception('no\n  such role') }}", "refuses these messages: no such role"),
        (
            "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}{% endfor %}{% endfor %}",
            "does not work in line 1: engine ran out of fuel",
        ),
    ];
    for (text, expected) in cases {
        let error = template(text).and_then(|template| template.render(&[user("a")])).unwrap_err().to_string();
        let expected = format!("x/chat_template.jinja: the chat template {expected}");
        assert!(error.starts_with(&expected) && !error.contains('\n'), "{error}\n is not\n{expected}");
    }
    let macros = "{% macro m() %}{{ raise_exception('within') }}{% endmacro %}{{ m() }}";
    let error = template(macros).unwrap().render(&[]).unwrap_err().to_string();
    assert!(error.ends_with("refuses these messages: within"), "{error}");
}

#[test]
fn tags_of_training_are_conditions_that_hold() {
    let text = |template: &str| without_generation(template);
    assert_eq!(text("a{%- generation +%}b{%endgeneration%}c"), "a{%- if true +%}b{%endif%}c");
    for same in ["", "{%", "{% if generation %}", "generation", "{{ generation }}{% x", "{% set x = 'a' %}%}"] {
        assert_eq!(text(same), same);
    }
}

#[test]
fn lists_within_lists_have_room_on_the_stack() {
    let (open, close) = ("[".repeat(40), "]".repeat(40));
    let text = |end: &str| {
        let set = format!("{{% set n.x = {open}n.x{close} %}}");
        let template =
            template(&format!("{{% set n = namespace(x=0) %}}{{% for i in range(2500) %}}{set}{{% endfor %}}{end}"));
        template.unwrap().render(&[]).unwrap()
    };
    assert_eq!(text("a"), "a");
    assert_eq!(text("{{ n.x == [n.x] }}"), "False");
    for end in ["{{ n.x }}", "{{ n.x | tojson }}"] {
        assert_eq!(text(end).len(), 200_001, "{end}");
    }
}
