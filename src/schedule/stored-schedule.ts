import { SortieError, textOf } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { type StoredMessage, storedMessage, type Which } from "../nats/stored-message.ts";
import { type StreamInfo, type SubjectsPage, streamInfo } from "../nats/stream-info.ts";

/** Asks for a message of a stream that schedules need. Throws `stream-missing` where the stream does not exist. */
export function storedSchedule(
  connection: Connection,
  stream: string,
  which: Which,
  ms: number,
  what: string,
): Promise<StoredMessage | undefined> {
  return needing(stream, storedMessage(connection, stream, which, ms, what));
}

/** Asks about a stream that schedules need. Throws `stream-missing` where it does not exist. */
export function schedulesInfo(
  connection: Connection,
  stream: string,
  ms: number,
  doing: string,
  page?: SubjectsPage,
): Promise<StreamInfo> {
  return needing(stream, streamInfo(connection, stream, ms, doing, page));
}

/** The subjects of a stream that match a pattern, a page at a time, with what the stream was when that was asked for. */
export async function* subjectsIn(
  filter: string,
  ask: (page: SubjectsPage) => Promise<StreamInfo>,
): AsyncGenerator<{ readonly subjects: readonly string[]; readonly lastSequence: number }> {
  for (let offset = 0, total = 1; offset < total; ) {
    const info = await ask({ subjects_filter: filter, offset });
    const subjects = Object.keys(info.state.subjects ?? {});
    yield { subjects, lastSequence: info.state.last_seq };
    if (subjects.length === 0) return;
    offset += subjects.length;
    total = info.total ?? 0;
  }
}

async function needing<T>(stream: string, asked: Promise<T>): Promise<T> {
  try {
    return await asked;
  } catch (error) {
    const reason = textOf(error);
    if (!/stream not found/i.test(reason)) throw error;
    throw new SortieError(
      "stream-missing",
      `Stream "${stream}", which schedules need: stream not found. Create it: npx sortie apply <the module with your app>`,
      { cause: error },
    );
  }
}
