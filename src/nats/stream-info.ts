import type { Connection } from "./connection.ts";
import { within } from "./within.ts";

/** What a stream's leader says of it, as far as it is looked at. */
export interface StreamInfo {
  /** The server's time; before 2.10 it does not say. */
  readonly ts?: string;
  readonly created: string;
  readonly config: { readonly allow_msg_schedules?: boolean; readonly num_replicas?: number };
  readonly state: {
    readonly messages: number;
    readonly bytes: number;
    readonly last_seq: number;
    /** Those of the page that was asked for, with how many messages each has. */
    readonly subjects?: Readonly<Record<string, number>>;
  };
  /** How many subjects there are on all pages. */
  readonly total?: number;
}

/** Which of its subjects are told, and from which of them on. */
export interface SubjectsPage {
  readonly subjects_filter: string;
  readonly offset: number;
}

/**
 * Asks a stream's leader about it, in one round trip.
 * @throws Error with the server's description of what is wrong, or what the client throws.
 */
export async function streamInfo(
  connection: Connection,
  stream: string,
  ms: number,
  doing: string,
  page?: SubjectsPage,
): Promise<StreamInfo> {
  const payload = page ? JSON.stringify(page) : "";
  const asked = connection.request(`$JS.API.STREAM.INFO.${stream}`, payload, { timeout: Math.max(1, ms) });
  const { error, ...info } = (await within(ms, doing, asked)).json<StreamInfo & { error?: { description: string } }>();
  if (error) throw new Error(error.description);
  return info;
}
