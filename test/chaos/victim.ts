import { invoke } from "../../src/consume/invocation.ts";
import { connect } from "../../src/nats/connection.ts";
import { soak as inSoak, scenario } from "./scenario.ts";
import { countPoints, type Strike } from "./struck.ts";

/** What the harness asks of a process that runs one invocation. */
export interface Orders {
  readonly url: string;
  readonly run: string;
  readonly log: string;
  readonly budgetMs: number;
  /** Where something is to happen to it. */
  readonly strike?: Strike;
  /** A message that kills the process, and how. */
  readonly poison?: { readonly n: number; readonly by: "exit" | "loop" | "memory" };
  /** How many messages a handler takes at once. @default 1 */
  readonly together?: number;
  /** Whether invocations have to agree. @default no */
  readonly agreeing?: boolean;
  /** One invocation after the other, until it is ended. */
  readonly soak?: boolean;
}

const {
  url,
  run,
  log,
  budgetMs,
  strike,
  poison,
  together = 1,
  agreeing = false,
  soak,
}: Orders = JSON.parse(process.argv[2] ?? "");
const times = countPoints(strike);

const kills = {
  exit: () => process.exit(1),
  loop: () => {
    for (;;);
  },
  memory: () => {
    for (const all: string[][] = []; ; ) all.push(Array.from({ length: 1e5 }, (_, n) => `${n}`));
  },
};
const { app } = soak
  ? scenario(run, log, inSoak)
  : scenario(run, log, { together, agreeing, ...(poison && { poisonous: { n: poison.n, kill: kills[poison.by] } }) });

async function once() {
  const { streams, bindings } = app;
  const connectTo = (ms: number) => connect({ url }, ms);
  return invoke({ streams, bindings, connect: connectTo, deadline: Date.now() + budgetMs, host: "victim", log() {} });
}

if (soak) for (;;) await once().catch(() => {}); // the server may be away
const report = await once();
console.log(JSON.stringify({ report, times: [...times] }));
process.exit(0);
