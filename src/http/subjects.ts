import type { App } from "../app.ts";
import type { StreamDefinition } from "../define/stream.ts";
import { covers } from "../define/subject.ts";
import { streamFor } from "../publish/outgoing.ts";
import { RequestError } from "./problem.ts";

/** What belongs to NATS or to Sortie, whatever the app's own patterns let in. */
const reserved = /^(\$|(_INBOX|_R_|_GR_|_SYS|sortie)(\.|$))/i;

/** Whether a subject, or a pattern, is none that only NATS, Sortie, or a consumer's dead letters go to. */
export function isPublic({ bindings }: Pick<App, "bindings">, subject: string): boolean {
  return !reserved.test(subject) && !bindings.some(({ consumer }) => covers(consumer.deadLetter, subject));
}

/**
 * The stream of a subject that can be published to from outside: it has a schema for it, and it is public.
 * @throws SortieError `unknown-subject`; RequestError where `tellsAll` is false: of other subjects it says nothing.
 */
export function publicStream(
  app: Pick<App, "streams" | "bindings">,
  subject: string,
  tellsAll: boolean,
): StreamDefinition {
  const isOurs = !isPublic(app, subject);
  try {
    return streamFor(isOurs ? [] : app.streams, subject);
  } catch (error) {
    if (tellsAll && !isOurs) throw error;
    throw new RequestError("unknown-subject", "No stream of this app has a schema for this subject");
  }
}
