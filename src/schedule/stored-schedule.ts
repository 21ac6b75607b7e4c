import { SortieError, textOf } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { type StoredMessage, storedMessage, type Which } from "../nats/stored-message.ts";

/** Asks for a message of a stream that schedules need. Throws `stream-missing` where the stream does not exist. */
export async function storedSchedule(
  connection: Connection,
  stream: string,
  which: Which,
  ms: number,
  what: string,
): Promise<StoredMessage | undefined> {
  try {
    return await storedMessage(connection, stream, which, ms, what);
  } catch (error) {
    if (/stream not found/i.test(textOf(error))) throw missingStream(stream, "stream not found");
    throw error;
  }
}

export function missingStream(stream: string, description: string | undefined): SortieError {
  return new SortieError(
    "stream-missing",
    `Stream "${stream}", which schedules need: ${description}. Create it: npx sortie apply <the module with your app>`,
  );
}
