import type { StreamDefinition } from "../define/stream.ts";
import { SortieError } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { managerOn } from "../nats/jetstream.ts";
import { within } from "../nats/within.ts";
import { releasesByItself, scheduleSubjects } from "./native.ts";
import { type Released, releaseDue } from "./release-due.ts";

/** What one scheduler invocation did. */
export type ReleaseReport =
  | {
      /** nats-server itself, from 2.12. */
      releasedBy: "server";
      /** How many wait. */
      streams: { stream: string; scheduled: number }[];
    }
  | { releasedBy: "function"; streams: ({ stream: string } & Released)[] };

export interface ReleaseOptions {
  /** When it must be over, in epoch milliseconds. */
  readonly deadline: number;
  /** How long to stay for what becomes due, in milliseconds; Infinity for as long as there is time. @default not at all */
  readonly lingerMs?: number;
  /** The clock. @default Date.now */
  readonly now?: () => number;
}

/** For the last of what is released to be confirmed, and for its notes to be taken away. */
const tailMs = 1_000;

/**
 * Releases what is due. Where the server releases by itself it makes sure of that instead: that each stream which takes
 * schedules has them switched on.
 * @throws SortieError `schedule-refused` where schedules would not be released, `stream-missing` for a stream that they need,
 * with what to do.
 */
export async function release(
  connection: Connection,
  streams: readonly StreamDefinition[],
  { deadline, lingerMs = 0, now = Date.now }: ReleaseOptions,
): Promise<ReleaseReport> {
  const scheduled = streams.filter((stream) => stream.schedules);
  if (releasesByItself(connection)) {
    const ms = deadline - now();
    const looked = Promise.all(scheduled.map((stream) => lookAt(connection, stream)));
    return { releasedBy: "server", streams: await within(ms, "looking at the schedules", looked) };
  }
  const tail = Math.min(tailMs, (deadline - now()) / 4);
  const times = { leaveAt: Math.min(now() + lingerMs, deadline - tail), settleBy: deadline - tail / 2, now };
  const releasing = scheduled.map(async (stream) => ({
    stream: stream.name,
    ...(await releaseDue(connection, stream, times)),
  }));
  return { releasedBy: "function", streams: await Promise.all(releasing) };
}

async function lookAt(connection: Connection, { name }: StreamDefinition) {
  const jsm = await managerOn(connection);
  const { config, state } = await jsm.streams.info(name, { subjects_filter: scheduleSubjects(name) });
  if (!config.allow_msg_schedules) {
    throw new SortieError(
      "schedule-refused",
      `Stream "${name}" is defined with schedules, but the server's does not allow them. Bring it up to date: npx sortie apply <the module with your app>`,
    );
  }
  return { stream: name, scheduled: Object.keys(state.subjects ?? {}).length };
}
