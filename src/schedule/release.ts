import { schedulesStream } from "../define/own.ts";
import type { StreamDefinition } from "../define/stream.ts";
import { SortieError, textOf } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { isReleasedByServer, scheduleSubjects } from "./native.ts";
import { allNotes } from "./pending.ts";
import { type Released, releaseDue } from "./release-due.ts";
import { schedulesInfo, storedSchedule } from "./stored-schedule.ts";

/** What one scheduler invocation did for the schedules of one stream; `error` is what went wrong, with what to do. */
interface ReleasedOf extends Partial<Released> {
  readonly stream: string;
  /** How many wait on the server, which releases them by itself; left out where it does not. */
  readonly onServer?: number;
}

/** What one scheduler invocation did. */
export interface ReleaseReport {
  readonly streams: readonly ReleasedOf[];
}

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
 * Releases what is due. Where the server does so by itself it makes sure that the stream has its schedules switched on, and
 * releases what the server cannot: what comes again, and what waits since the server was older. There it stays only
 * for what it knows to become due.
 * What keeps the schedules of one stream from being released is its `error`, with what to do.
 */
export async function release(
  connection: Connection,
  streams: readonly StreamDefinition[],
  { deadline, lingerMs = 0, now: clock = Date.now }: ReleaseOptions,
): Promise<ReleaseReport> {
  // a clock that is set right meanwhile is not to make anything early
  const [began, since] = [clock(), performance.now()];
  const now = () => began + (performance.now() - since);
  const tail = Math.min(tailMs, (deadline - now()) / 4);
  const times = { leaveAt: Math.min(now() + lingerMs, deadline - tail), settleBy: deadline - tail / 2, now };
  const leftMs = () => times.settleBy - now();
  const releasing = streams
    .filter((stream) => stream.schedules)
    .map(
      (stream): Promise<ReleasedOf> =>
        releaseStream(stream).catch((error: unknown) => ({ stream: stream.name, error: textOf(error) })), // not of the others
    );
  return { streams: await Promise.all(releasing) };

  async function releaseStream(stream: StreamDefinition): Promise<ReleasedOf> {
    const { name } = stream;
    const onServer = isReleasedByServer(connection, stream)
      ? await countOnServer(connection, name, leftMs())
      : undefined;
    const awaitsNews = onServer === undefined;
    const waits = awaitsNews || (await hasNotes(connection, name, leftMs()));
    const released = waits ? await releaseDue(connection, stream, { ...times, awaitsNews }) : undefined;
    return { stream: name, ...(onServer !== undefined && { onServer }), ...released };
  }
}

/** Whether something waits for a function, though the server releases what it can. */
async function hasNotes(connection: Connection, name: string, ms: number): Promise<boolean> {
  const which = { next_by_subj: allNotes(name), seq: 1 };
  const doing = "looking for what a function has to release";
  return (await storedSchedule(connection, schedulesStream, which, ms, doing)) !== undefined;
}

async function countOnServer(connection: Connection, name: string, ms: number): Promise<number> {
  // from beyond the last of them, so that they are counted and not listed
  const page = { subjects_filter: scheduleSubjects(name), offset: 2 ** 31 - 1 };
  const { config, total } = await schedulesInfo(connection, name, ms, "looking at the schedules", page);
  if (!config.allow_msg_schedules) {
    throw new SortieError(
      "schedule-refused",
      `Stream "${name}" is defined with schedules, but the server's does not allow them. Bring it up to date: npx sortie apply <the module with your app>`,
    );
  }
  return total ?? 0;
}
