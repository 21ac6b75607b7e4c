import { readSync, writeSync } from "node:fs";
import { invoke } from "../../src/consume/invocation.ts";
import { connect } from "../../src/nats/connection.ts";
import { crashPoints } from "../../src/nats/within.ts";
import { soak as inSoak, scenario } from "./scenario.ts";

/** What the harness asks of a process that runs one invocation. */
export interface Orders {
  readonly url: string;
  readonly run: string;
  readonly log: string;
  readonly budgetMs: number;
  /** Where something is to happen to it: at the `nth` time, from 0, that it gets there. */
  readonly strike?: { readonly point: string; readonly phase: string; readonly nth: number };
  /** A message that kills the process, and how. */
  readonly poison?: { readonly n: number; readonly by: "exit" | "loop" | "memory" };
  /** How many messages a handler takes at once. @default 1 */
  readonly together?: number;
  /** Whether invocations have to agree. @default no */
  readonly agreeing?: boolean;
  /** One invocation after the other, until it is ended. */
  readonly soak?: boolean;
}

const control = 3; // a socket of the harness: what it writes there is waited for, with everything else standing still
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
const times = new Map<string, number>();

crashPoints.reached = (what, phase) => {
  const point = what.replace(/"([a-z]*)[^"]*"/g, "$1…");
  const place = `${phase} ${point}`;
  const nth = times.get(place) ?? 0;
  times.set(place, nth + 1);
  if (strike?.point !== point || strike.phase !== phase || strike.nth !== nth) return;
  writeSync(control, "here\n");
  readSync(control, new Uint8Array(16));
};

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
