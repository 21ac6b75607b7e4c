import type { StreamDefinition } from "../define/stream.ts";
import { SortieError } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { managerOn } from "../nats/jetstream.ts";
import { within } from "../nats/within.ts";
import { assertSchedules, scheduleSubjects } from "./schedule.ts";

/** What one scheduler invocation found. */
export interface ReleaseReport {
  /** Who releases what is due: nats-server itself, from 2.12. */
  releasedBy: "server";
  streams: { stream: string; scheduled: number }[];
}

/**
 * Makes sure that what is scheduled will be released: that the server releases by itself, and that each stream which takes
 * schedules has them switched on. Answers how many are waiting.
 * @throws SortieError `schedule-refused` where schedules would not be released, with what to do.
 */
export async function release(
  connection: Connection,
  streams: readonly StreamDefinition[],
  ms: number,
): Promise<ReleaseReport> {
  const jsm = await managerOn(connection);
  const counted = streams
    .filter((stream) => stream.schedules)
    .map(async ({ name }) => {
      const subject = scheduleSubjects(name);
      assertSchedules(connection, subject);
      const { config, state } = await jsm.streams.info(name, { subjects_filter: subject });
      if (!config.allow_msg_schedules) {
        throw new SortieError(
          "schedule-refused",
          `Stream "${name}" is defined with schedules, but the server's does not allow them. Bring it up to date: npx sortie apply <the module with your app>`,
        );
      }
      return { stream: name, scheduled: Object.keys(state.subjects ?? {}).length };
    });
  return { releasedBy: "server", streams: await within(ms, "looking at the schedules", Promise.all(counted)) };
}
