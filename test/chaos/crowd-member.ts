import { invoke } from "../../src/consume/invocation.ts";
import { connect } from "../../src/nats/connection.ts";
import { crashPoints } from "../../src/nats/within.ts";
import { type Agreement, crowdApp } from "./crowd-app.ts";

/** What is asked of a process that runs one invocation after the other, until it is ended. */
export interface Membership {
  readonly url: string;
  readonly agreement: Agreement;
  readonly log: string;
  /** Kills itself at a wait: the more often it has come to one of that name, the less likely there. @default never */
  readonly mortal?: boolean;
}

const { url, agreement, log, mortal = false }: Membership = JSON.parse(process.argv[2] ?? "");
const times = new Map<string, number>();

if (mortal) {
  crashPoints.reached = (what, phase) => {
    const place = `${phase} ${what}`;
    const nth = (times.get(place) ?? 0) + 1;
    times.set(place, nth);
    if (Math.random() < 0.02 / nth) process.kill(process.pid, "SIGKILL");
  };
}

const { app } = crowdApp(agreement, log);
for (;;) {
  const { streams, bindings } = app;
  const connectTo = (ms: number) => connect({ url }, ms);
  const invoked = invoke({ streams, bindings, connect: connectTo, deadline: Date.now() + 3_000, log() {} });
  const report = await invoked.catch(() => undefined);
  const idle = report?.consumers.every(({ pulled }) => pulled === 0); // as while a lease of a dead one runs out
  await new Promise((resolve) => setTimeout(resolve, idle ? 150 : 20));
}
