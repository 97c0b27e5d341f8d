// Asks for the URL that it is told on standard input, over Conscrypt's BoringSSL, whoever the server is.
//
// java -cp conscrypt-openjdk-uber.jar Get.java

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URL;
import java.security.cert.X509Certificate;
import javax.net.ssl.HttpsURLConnection;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManager;
import javax.net.ssl.X509TrustManager;

public final class Get {
  private static final class Everybody implements X509TrustManager {
    @Override
    public void checkClientTrusted(X509Certificate[] chain, String type) {}

    @Override
    public void checkServerTrusted(X509Certificate[] chain, String type) {}

    @Override
    public X509Certificate[] getAcceptedIssuers() {
      return new X509Certificate[0];
    }
  }

  public static void main(String[] arguments) throws Exception {
    SSLContext context = SSLContext.getInstance("TLS", org.conscrypt.Conscrypt.newProvider());
    context.init(null, new TrustManager[] {new Everybody()}, null);
    System.out.println("ready");
    String url = new BufferedReader(new InputStreamReader(System.in)).readLine();
    HttpsURLConnection connection = (HttpsURLConnection) new URL(url).openConnection();
    connection.setSSLSocketFactory(context.getSocketFactory());
    connection.setHostnameVerifier((host, session) -> true);
    System.out.println(connection.getResponseCode());
  }
}
