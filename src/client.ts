import type { App } from "./app.ts";
import type { PayloadFor, PublishableSubject } from "./consume/handler.ts";
import type { StreamDefinition } from "./define/stream.ts";
import { connectAndLogIn, disconnect, type ServerOptions } from "./nats/connection.ts";
import { prepare } from "./publish/outgoing.ts";
import { type Published, publish } from "./publish/publish.ts";
import type { ScheduleOptions } from "./schedule/schedule.ts";
import { createSchedules, type Schedules } from "./schedule/schedules.ts";

/** Publishes and schedules from outside of handlers, over a connection of its own. */
export interface Client<Stream extends StreamDefinition = StreamDefinition> extends Disposable {
  /**
   * Checks a message against the schema of its subject, and waits until the server has stored it; `id` makes a second publish
   * within the stream's duplicate window store nothing.
   * @throws SortieError `unknown-subject`, `invalid-payload`, `stream-missing`, `stream-refused`, `permission-denied`,
   * `payload-too-large`, `timed-out` or `connection-lost`. After the last two the message may be stored all the same: publish
   * again with the same id.
   */
  publish<Subject extends PublishableSubject<Stream>>(
    subject: Subject,
    data: PayloadFor<Stream, Subject>,
    options?: { id?: string },
  ): Promise<Published>;
  /** As `publish`, for a message that is released later, and never early. Also throws `schedule-refused` and `invalid-option`. */
  schedule<Subject extends PublishableSubject<Stream>>(
    subject: Subject,
    data: PayloadFor<Stream, Subject>,
    options: ScheduleOptions,
  ): Promise<{ id: string; stream: string; at: Date }>;
  /** The schedules of the app's streams. */
  readonly schedules: Omit<Schedules, "schedule">;
  /** Closes the connection. */
  close(): void;
}

const stepMs = 5_000;

/**
 * Connects for an app's messages. A function opens one for each request, and closes it.
 * @throws SortieError `connection-failed`
 * @example
 * using client = await createClient(app, { url: process.env.NATS_URL });
 * await client.schedules.cancel("trial of ann");
 */
export async function createClient<Stream extends StreamDefinition>(
  { streams }: Pick<App<Stream>, "streams">,
  server: ServerOptions,
): Promise<Client<Stream>> {
  const connection = await connectAndLogIn(server, stepMs);
  const { schedule, ...schedules } = createSchedules(connection, streams, { ms: stepMs });
  return {
    async publish(subject, data, { id } = {}) {
      return publish(connection, { ...(await prepare(streams, subject, data)), id }, stepMs);
    },
    schedule,
    schedules,
    close: () => disconnect(connection),
    [Symbol.dispose]: () => disconnect(connection),
  };
}
