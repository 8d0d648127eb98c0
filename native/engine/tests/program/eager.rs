use nitrox_engine::program::{Graph, Ref};
use nitrox_engine::{Device, Tensor};

/// Runs the graph's ops one by one: outputs and next states.
pub fn eager(
    device: &Device,
    graph: &Graph,
    params: &[Tensor],
    inputs: &[Tensor],
    states: &[Tensor],
) -> (Vec<Tensor>, Vec<Tensor>) {
    let mut made: Vec<Vec<Tensor>> = Vec::new();
    let get = |made: &Vec<Vec<Tensor>>, r: Ref| match r {
        Ref::Param(i) => params[i].clone(),
        Ref::Input(i) => inputs[i].clone(),
        Ref::State(i) => states[i].clone(),
        Ref::Node(n, k) => made[n][k].clone(),
    };
    for node in &graph.nodes {
        let operands: Vec<_> = node.inputs.iter().map(|r| r.map(|r| get(&made, r))).collect();
        let operands: Vec<_> = operands.iter().map(Option::as_ref).collect();
        made.push(device.run(&node.op, &operands).unwrap());
    }
    let all = |refs: &[Ref]| refs.iter().map(|&r| get(&made, r)).collect();
    (all(&graph.outputs), all(&graph.next_state))
}
