import type { LambdaFunctionURLEvent, ScheduledEvent } from "aws-lambda";

/** A request as a function URL hands it over. */
export async function urlEvent(request: Request): Promise<LambdaFunctionURLEvent> {
  const { pathname, search } = new URL(request.url);
  const body = Buffer.from(await request.arrayBuffer());
  const headers = Object.fromEntries(request.headers);
  return urlEventOf({ method: request.method, path: pathname, query: search.slice(1), headers, body });
}

/** The same of its parts: payload format 2.0. */
export function urlEventOf({
  method,
  path,
  query = "",
  headers,
  body,
}: {
  method: string;
  path: string;
  query?: string;
  headers: Record<string, string>;
  body: Buffer;
}): LambdaFunctionURLEvent {
  const domainName = "abc.lambda-url.eu-central-1.on.aws";
  return {
    version: "2.0",
    routeKey: "$default",
    rawPath: path,
    rawQueryString: query,
    headers: { host: domainName, ...headers },
    requestContext: {
      accountId: "anonymous",
      apiId: "abc",
      domainName,
      domainPrefix: "abc",
      http: { method, path, protocol: "HTTP/1.1", sourceIp: "192.0.2.1", userAgent: "test" },
      requestId: "1",
      routeKey: "$default",
      stage: "$default",
      time: "01/Jan/2026:00:00:00 +0000",
      timeEpoch: 1_767_225_600_000,
    },
    ...(body.length > 0 && { body: body.toString("base64") }),
    isBase64Encoded: body.length > 0,
  };
}

/** What EventBridge Scheduler sends to a target without an input of its own. */
export const scheduledEvent: ScheduledEvent<string> = {
  version: "0",
  id: "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa",
  "detail-type": "Scheduled Event",
  source: "aws.scheduler",
  account: "123456789012",
  time: "2026-01-01T00:00:00Z",
  region: "eu-central-1",
  resources: ["arn:aws:scheduler:eu-central-1:123456789012:schedule/default/pull"],
  detail: "{}",
};
