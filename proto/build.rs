//! Compiles `exchequer/v1/*.proto` with protox (no protoc on the machine) into prost messages, and into tonic services when the
//! `grpc` feature asks for them. The descriptor set is kept for reflection, and the shapes of the records that are read by the
//! million are written down as tables.

use std::{collections::BTreeMap, env, error::Error, fmt::Write as _, fs, path::PathBuf};

use protox::prost_reflect::prost_types::{
    DescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

/// Messages whose shapes are written down, with all that they are made of.
const SHAPED: [&str; 2] = ["Event", "DecisionRun"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=exchequer");
    let files = ["event", "ledger", "metering", "agent"].map(|name| format!("exchequer/v1/{name}.proto"));
    let descriptors = protox::compile(&files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    fs::write(out.join("shapes.rs"), shapes(&descriptors)?)?;
    let grpc = env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        .bytes(".exchequer.v1")
        .compile_fds(descriptors)?;
    Ok(())
}

/// Rust source with one `Shape` for each message.
fn shapes(descriptors: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let messages: BTreeMap<_, _> = descriptors
        .file
        .iter()
        .flat_map(|file| &file.message_type)
        .map(|message| (format!(".exchequer.v1.{}", message.name()), message))
        .collect();
    let mut wanted: Vec<_> = SHAPED.iter().map(|name| format!(".exchequer.v1.{name}")).collect();
    let mut done = BTreeMap::new();
    while let Some(name) = wanted.pop() {
        let message = messages.get(&name).ok_or_else(|| format!("there is no message {name}"))?;
        if done.insert(name, shape(message, &messages)).is_none() {
            let types = message.field.iter().map(|field| field.type_name());
            wanted.extend(types.filter(|name| messages.contains_key(*name)).map(str::to_owned));
        }
    }
    let mut source = String::new();
    for (name, fields) in done {
        let name = constant(&name);
        writeln!(source, "/// The message of this name.\npub static {name}: Shape = Shape(&[{fields}]);")?;
    }
    Ok(source)
}

/// The fields by number, from 0 on.
fn shape(message: &DescriptorProto, messages: &BTreeMap<String, &DescriptorProto>) -> String {
    let highest = message.field.iter().map(|field| field.number()).max().unwrap_or(0);
    let field = |number| {
        let Some(field) = message.field.iter().find(|field| field.number() == number) else {
            return "Field::Unknown".to_owned();
        };
        let is_repeated = field.label() == Label::Repeated;
        match field.r#type() {
            Type::String => "Field::Text".to_owned(),
            Type::Bytes => "Field::Bytes".to_owned(),
            Type::Message if messages.contains_key(field.type_name()) => {
                format!("Field::Message(&{})", constant(field.type_name()))
            }
            Type::Uint64 | Type::Uint32 | Type::Int64 | Type::Int32 | Type::Enum | Type::Bool
                if !is_repeated =>
            {
                "Field::Number".to_owned()
            }
            // Packed numbers and the like: nothing here has them.
            _ => "Field::Unknown".to_owned(),
        }
    };
    (0..=highest).map(field).collect::<Vec<_>>().join(", ")
}

/// `.exchequer.v1.BlockSeal` as `BLOCK_SEAL`.
fn constant(name: &str) -> String {
    let name = name.rsplit('.').next().unwrap_or(name);
    let mut constant = String::new();
    for (place, letter) in name.chars().enumerate() {
        if letter.is_uppercase() && place > 0 {
            constant.push('_');
        }
        constant.push(letter.to_ascii_uppercase());
    }
    constant
}
