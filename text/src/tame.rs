//! What a template may build. Every container that template code makes passes through these
//! filters (jinja.rs puts them there), so each value in a render is a tree of bounded depth,
//! bounded number of nodes and bounded text, counted as if printed: no part can hide behind
//! sharing. Namespaces are the only mutable objects; they may not be put into anything, so that
//! nothing can contain itself.

use std::collections::BTreeMap;

use minijinja::value::{DynObject, ObjectRepr, Value, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State};

use crate::jinja::{CHECK_ATTRIBUTE, CHECK_VALUE};

const NODES_MAX: usize = 200_000;
const TEXT_MAX: usize = 64 << 20;
/// Input JSON may be 128 deep; templates put a few levels around it.
const DEPTH_MAX: usize = 150;
/// Nodes visited for one unit of fuel.
const NODES_PER_FUEL: usize = 8;
/// Key that tells a namespace from other maps; no identifier of a template can spell it.
const NAMESPACE: &str = "is namespace";

pub fn install(env: &mut Environment) {
    env.add_filter(CHECK_VALUE, |state: &State, value: Value| checked(state, value, 0));
    // An attribute lies inside a namespace: one level down already.
    env.add_filter(CHECK_ATTRIBUTE, |state: &State, value: Value| checked(state, value, 1));
    env.add_function("namespace", namespace);
    env.set_unknown_method_callback(|state, value, method, args| {
        // str.format pads before anyone can count the cost.
        if method == "format" && value.as_str().is_some_and(has_long_number) {
            let message = "format: width or precision is over 9999";
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
    });
}

/// Over four digits in a row.
fn has_long_number(text: &str) -> bool {
    text.as_bytes().windows(5).any(|five| five.iter().all(u8::is_ascii_digit))
}

/// Macros look like maps. One kept in a namespace that it uses itself would never be freed.
fn is_macro(object: &DynObject) -> bool {
    let has = |key: &str| object.get_value(&Value::from(key)).is_some();
    object.enumerator_len() == Some(3) && has("name") && has("arguments") && has("caller")
}

fn namespace(defaults: Option<ValueOrKwargs>) -> Result<Value, Error> {
    let mut pairs: BTreeMap<String, Value> = BTreeMap::new();
    if let Some(defaults) = defaults {
        let defaults = defaults.into_value();
        for (key, value) in
            defaults.as_object().and_then(|map| map.try_iter_pairs()).into_iter().flatten()
        {
            visit(&value, &mut Count { nodes: 0, text: 0 }, 1)
                .map_err(|why| Error::new(ErrorKind::InvalidOperation, why))?;
            pairs.insert(key.to_string(), value);
        }
    }
    pairs.insert(NAMESPACE.to_owned(), Value::from(true));
    minijinja::functions::namespace(Some(Value::from(pairs).into()))
}

struct Count {
    nodes: usize,
    text: usize,
}

fn checked(state: &State, value: Value, depth: usize) -> Result<Value, Error> {
    if value.as_object().is_none() {
        return Ok(value);
    }
    let mut count = Count { nodes: 0, text: 0 };
    let outcome = visit(&value, &mut count, depth);
    state.consume_fuel((count.nodes / NODES_PER_FUEL) as u64)?;
    outcome.map_err(|why| Error::new(ErrorKind::InvalidOperation, why))?;
    Ok(value)
}

fn visit(value: &Value, count: &mut Count, depth: usize) -> Result<(), &'static str> {
    count.nodes += 1;
    if count.nodes > NODES_MAX {
        return Err("value has too many parts");
    }
    if let Some(text) = value.as_str() {
        count.text += text.len();
        return if count.text > TEXT_MAX { Err("value holds too much text") } else { Ok(()) };
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    if depth > DEPTH_MAX {
        return Err("value is nested too deeply");
    }
    match object.repr() {
        ObjectRepr::Seq | ObjectRepr::Iterable => {
            for item in object.try_iter().into_iter().flatten() {
                visit(&item, count, depth + 1)?;
            }
        }
        ObjectRepr::Map => {
            if depth > 0 && object.get_value(&Value::from(NAMESPACE)).is_some() {
                return Err("a namespace cannot be put into a value");
            }
            if depth > 0 && is_macro(object) {
                return Err("a function cannot be put into a value");
            }
            for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                visit(&key, count, depth + 1)?;
                visit(&item, count, depth + 1)?;
            }
        }
        _ if depth > 0 => return Err("a function cannot be put into a value"),
        _ => {}
    }
    Ok(())
}
