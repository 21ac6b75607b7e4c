import type { LambdaEvent } from "hono/aws-lambda";
import { SortieError } from "../errors.ts";

/** What the HTTP surface has something at: a stage may have the name of it. */
const route = /^\/((publish|run|schedules)\/.|(schedules|release|health|openapi\.json)$)/;

/**
 * An HTTP request as a function URL, API Gateway or a load balancer hands it over, with the path that its caller meant.
 * @throws SortieError `not-configured` for any other event: it would be answered with a 404 that nobody reads.
 */
export function httpEvent<Event extends LambdaEvent>(event: Event): Event {
  const { requestContext } = (isObject(event) ? event : {}) as { requestContext?: unknown };
  const context = isObject(requestContext) ? requestContext : {};
  if ("http" in context && "rawPath" in event) {
    // a stage with a name stands before the path of an HTTP API, and not of a REST API, nor behind a domain of one's own
    const prefix = `/${"stage" in context ? context.stage : "$default"}/`;
    const rest = event.rawPath.startsWith(prefix) ? event.rawPath.slice(prefix.length - 1) : "";
    const path = route.test(rest) ? rest : event.rawPath;
    return bodyless({ ...event, rawPath: literal(path) }, (context.http as { method?: string }).method);
  }
  const isRequest = "serviceArn" in context || (isObject(event) && "httpMethod" in event);
  if (isRequest && "path" in event) {
    const { httpMethod } = event as { httpMethod?: string };
    return bodyless({ ...event, path: literal(event.path) }, httpMethod);
  }
  throw new SortieError(
    "not-configured",
    `http: expected an HTTP request of a function URL, API Gateway or a load balancer, got ${described(event)}. Let schedules start \`pull\` and \`release\` instead.`,
  );
}

/** A request that has a body where none can be is none to a `Request`. */
function bodyless<Event extends LambdaEvent>(event: Event, method = ""): Event {
  return /^(GET|HEAD)$/i.test(method) ? { ...event, body: null } : event;
}

/** A path as it is: some hand it over decoded, and the query apart. */
function literal(path: string): string {
  return path.replace(/[?#\\]|%(?![0-9a-f]{2})/gi, encodeURIComponent);
}

function described(event: unknown): string {
  if (!isObject(event)) return `an event that is ${JSON.stringify(event)}`;
  const { source, "detail-type": type } = event as { source?: unknown; "detail-type"?: unknown };
  if (typeof source === "string") return `an event of ${source} (${type})`;
  return `an event with ${Object.keys(event).join(", ") || "nothing in it"}`;
}

function isObject(value: unknown): value is object {
  return typeof value === "object" && value !== null;
}
