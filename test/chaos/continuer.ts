import { invoke } from "../../src/consume/invocation.ts";
import { connect } from "../../src/nats/connection.ts";
import { crashPoints } from "../../src/nats/within.ts";
import { type Going, goingOn } from "./going-on.ts";

// One invocation; the places of those to start go to whoever started this process.
const { url, log, budgetMs, place, dieAt }: Going = JSON.parse(process.argv[2] ?? "");
crashPoints.reached = (what, phase) => {
  if (`${phase} ${what}` === dieAt) process.kill(process.pid, "SIGKILL");
};
const { streams, bindings, fanOut } = goingOn(log);
await invoke({
  streams,
  bindings,
  fanOut,
  place,
  connect: (ms) => connect({ url }, ms),
  deadline: Date.now() + budgetMs,
  onMore: (places) => new Promise((resolve) => process.send?.(places, resolve)),
  log() {},
});
process.exit(0);
