// One request over HTTP/2: its URL and headers as JSON in the argument, its body on standard input. Prints the answer as
// JSON. It is here because curl of Debian 12 waits for ever when an answer comes before it has sent its body.
import { readFileSync } from 'node:fs';
import { connect } from 'node:http2';
import net from 'node:net';

const { origin, socket, headers } = JSON.parse(process.argv[2]);
const session = connect(origin, socket ? { createConnection: () => net.connect(socket) } : {});
const answer = { headers: {}, trailers: {} };
const body = [];
const request = session.request({ ':method': 'POST', ...headers });
request.setTimeout(60_000, () => request.destroy(new Error('no answer within a minute')));
request.on('response', (received) => Object.assign(answer.headers, received));
request.on('trailers', (received) => Object.assign(answer.trailers, received));
request.on('data', (piece) => body.push(piece));
request.on('end', () => {
  console.log(JSON.stringify({ ...answer, body: Buffer.concat(body).toString('hex') }));
  session.destroy();
});
request.end(readFileSync(0));
