import * as z from "zod";
import { defineStream } from "../../src/index.ts";
import { connect } from "../../src/nats/connection.ts";
import { release } from "../../src/schedule/release.ts";
import { countPoints, type Strike } from "./struck.ts";

/** What the harness asks of a process that releases once. */
export interface ReleaseOrders {
  readonly url: string;
  readonly run: string;
  readonly strike?: Strike;
}

/** A stream of one run, whose schedules a function releases on every server. */
export function streamOf(run: string) {
  const subjects = { [`tasks.${run}`]: z.object({ n: z.number() }) };
  return defineStream(`TASKS_${run}`, { subjects, schedules: "function" });
}

export const releasingMs = 3_000;

if (process.argv[2]) {
  const { url, run, strike }: ReleaseOrders = JSON.parse(process.argv[2]);
  const times = countPoints(strike);
  const connection = await connect({ url }, 5_000);
  await release(connection, [streamOf(run)], { deadline: Date.now() + releasingMs, lingerMs: Infinity });
  console.log(JSON.stringify([...times]));
  process.exit(0);
}
