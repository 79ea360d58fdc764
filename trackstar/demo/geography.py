"""Countries, states of the United States, and landmarks, as plain tables: one row a line, cells between bars.

A dash stands where there is no single plain answer: several capitals, a disputed or changing one, two continents, no one
language that is both the official and the most used.
"""

# country | capital | currency | main language | continent
COUNTRIES = """
Afghanistan | Kabul | afghani | Dari | Asia
Albania | Tirana | lek | Albanian | Europe
Algeria | Algiers | dinar | Arabic | Africa
Andorra | Andorra la Vella | euro | Catalan | Europe
Angola | Luanda | kwanza | Portuguese | Africa
Argentina | Buenos Aires | peso | Spanish | South America
Armenia | Yerevan | dram | Armenian | -
Australia | Canberra | dollar | English | -
Austria | Vienna | euro | German | Europe
Azerbaijan | Baku | manat | Azerbaijani | -
the Bahamas | Nassau | dollar | English | North America
Bahrain | Manama | dinar | Arabic | Asia
Bangladesh | Dhaka | taka | Bengali | Asia
Barbados | Bridgetown | dollar | English | North America
Belarus | Minsk | ruble | - | Europe
Belgium | Brussels | euro | - | Europe
Belize | Belmopan | dollar | - | North America
Benin | Porto-Novo | franc | - | Africa
Bhutan | Thimphu | ngultrum | Dzongkha | Asia
Bolivia | - | boliviano | Spanish | South America
Bosnia and Herzegovina | Sarajevo | - | - | Europe
Botswana | Gaborone | pula | Tswana | Africa
Brazil | Brasília | real | Portuguese | South America
Brunei | Bandar Seri Begawan | dollar | Malay | Asia
Bulgaria | Sofia | - | Bulgarian | Europe
Burkina Faso | Ouagadougou | franc | - | Africa
Burundi | Gitega | franc | Kirundi | Africa
Cambodia | Phnom Penh | riel | Khmer | Asia
Cameroon | Yaoundé | franc | - | Africa
Canada | Ottawa | dollar | English | North America
Cape Verde | Praia | escudo | - | Africa
the Central African Republic | Bangui | franc | Sango | Africa
Chad | N'Djamena | franc | - | Africa
Chile | Santiago | peso | Spanish | South America
China | Beijing | yuan | Mandarin | Asia
Colombia | Bogotá | peso | Spanish | South America
the Comoros | Moroni | franc | Comorian | Africa
Costa Rica | San José | colón | Spanish | North America
Croatia | Zagreb | euro | Croatian | Europe
Cuba | Havana | peso | Spanish | North America
Cyprus | Nicosia | euro | Greek | -
the Czech Republic | Prague | koruna | Czech | Europe
Denmark | Copenhagen | krone | Danish | Europe
Dominica | Roseau | dollar | - | North America
the Dominican Republic | Santo Domingo | peso | Spanish | North America
Ecuador | Quito | dollar | Spanish | South America
Egypt | Cairo | pound | Arabic | -
El Salvador | San Salvador | dollar | Spanish | North America
Eritrea | Asmara | nakfa | Tigrinya | Africa
Estonia | Tallinn | euro | Estonian | Europe
Eswatini | Mbabane | lilangeni | Swazi | Africa
Ethiopia | Addis Ababa | birr | - | Africa
Fiji | Suva | dollar | - | -
Finland | Helsinki | euro | Finnish | Europe
France | Paris | euro | French | Europe
Gabon | Libreville | franc | - | Africa
the Gambia | Banjul | dalasi | - | Africa
Georgia | Tbilisi | lari | Georgian | -
Germany | Berlin | euro | German | Europe
Ghana | Accra | cedi | - | Africa
Greece | Athens | euro | Greek | Europe
Guatemala | Guatemala City | quetzal | Spanish | North America
Guinea | Conakry | franc | - | Africa
Guinea-Bissau | Bissau | franc | - | Africa
Guyana | Georgetown | dollar | - | South America
Haiti | Port-au-Prince | gourde | Haitian Creole | North America
Honduras | Tegucigalpa | lempira | Spanish | North America
Hungary | Budapest | forint | Hungarian | Europe
Iceland | Reykjavik | krona | Icelandic | Europe
India | New Delhi | rupee | Hindi | Asia
Indonesia | - | rupiah | Indonesian | -
Iran | Tehran | rial | Persian | Asia
Iraq | Baghdad | dinar | Arabic | Asia
Ireland | Dublin | euro | English | Europe
Italy | Rome | euro | Italian | Europe
Ivory Coast | Yamoussoukro | franc | - | Africa
Jamaica | Kingston | dollar | - | North America
Japan | Tokyo | yen | Japanese | Asia
Jordan | Amman | dinar | Arabic | Asia
Kazakhstan | Astana | tenge | Kazakh | -
Kenya | Nairobi | shilling | Swahili | Africa
Kuwait | Kuwait City | dinar | Arabic | Asia
Kyrgyzstan | Bishkek | som | Kyrgyz | Asia
Laos | Vientiane | kip | Lao | Asia
Latvia | Riga | euro | Latvian | Europe
Lebanon | Beirut | pound | Arabic | Asia
Lesotho | Maseru | loti | Sesotho | Africa
Liberia | Monrovia | dollar | - | Africa
Libya | Tripoli | dinar | Arabic | Africa
Liechtenstein | Vaduz | franc | German | Europe
Lithuania | Vilnius | euro | Lithuanian | Europe
Madagascar | Antananarivo | ariary | Malagasy | Africa
Malawi | Lilongwe | kwacha | Chichewa | Africa
Malaysia | Kuala Lumpur | ringgit | Malay | Asia
the Maldives | Malé | rufiyaa | Dhivehi | Asia
Mali | Bamako | franc | Bambara | Africa
Malta | Valletta | euro | Maltese | Europe
Mauritania | Nouakchott | ouguiya | Arabic | Africa
Mauritius | Port Louis | rupee | - | Africa
Mexico | Mexico City | peso | Spanish | North America
Moldova | Chisinau | leu | Romanian | Europe
Mongolia | Ulaanbaatar | tugrik | Mongolian | Asia
Montenegro | Podgorica | euro | - | Europe
Morocco | Rabat | dirham | Arabic | Africa
Mozambique | Maputo | metical | Portuguese | Africa
Myanmar | Naypyidaw | kyat | Burmese | Asia
Namibia | Windhoek | dollar | - | Africa
Nepal | Kathmandu | rupee | Nepali | Asia
the Netherlands | Amsterdam | euro | Dutch | Europe
New Zealand | Wellington | dollar | English | -
Nicaragua | Managua | córdoba | Spanish | North America
Niger | Niamey | franc | - | Africa
Nigeria | Abuja | naira | - | Africa
North Korea | Pyongyang | won | Korean | Asia
North Macedonia | Skopje | denar | Macedonian | Europe
Norway | Oslo | krone | Norwegian | Europe
Oman | Muscat | rial | Arabic | Asia
Pakistan | Islamabad | rupee | - | Asia
Palau | Ngerulmud | dollar | Palauan | -
Panama | Panama City | balboa | Spanish | North America
Papua New Guinea | Port Moresby | kina | Tok Pisin | -
Paraguay | Asunción | guaraní | - | South America
Peru | Lima | sol | Spanish | South America
the Philippines | Manila | peso | Filipino | Asia
Poland | Warsaw | zloty | Polish | Europe
Portugal | Lisbon | euro | Portuguese | Europe
Qatar | Doha | riyal | Arabic | Asia
Romania | Bucharest | leu | Romanian | Europe
Russia | Moscow | ruble | Russian | -
Rwanda | Kigali | franc | Kinyarwanda | Africa
Saint Lucia | Castries | dollar | - | North America
Samoa | Apia | tala | Samoan | -
Saudi Arabia | Riyadh | riyal | Arabic | Asia
Senegal | Dakar | franc | Wolof | Africa
Serbia | Belgrade | dinar | Serbian | Europe
Seychelles | Victoria | rupee | - | Africa
Sierra Leone | Freetown | leone | - | Africa
Slovakia | Bratislava | euro | Slovak | Europe
Slovenia | Ljubljana | euro | Slovenian | Europe
the Solomon Islands | Honiara | dollar | - | -
Somalia | Mogadishu | shilling | Somali | Africa
South Africa | - | rand | - | Africa
South Korea | Seoul | won | Korean | Asia
South Sudan | Juba | pound | - | Africa
Spain | Madrid | euro | Spanish | Europe
Sudan | Khartoum | pound | Arabic | Africa
Suriname | Paramaribo | dollar | Dutch | South America
Sweden | Stockholm | krona | Swedish | Europe
Switzerland | Bern | franc | German | Europe
Syria | Damascus | pound | Arabic | Asia
Tajikistan | Dushanbe | somoni | Tajik | Asia
Tanzania | Dodoma | shilling | Swahili | Africa
Thailand | Bangkok | baht | Thai | Asia
Timor-Leste | Dili | dollar | Tetum | Asia
Togo | Lomé | franc | - | Africa
Tonga | Nuku'alofa | pa'anga | Tongan | -
Trinidad and Tobago | Port of Spain | dollar | - | North America
Tunisia | Tunis | dinar | Arabic | Africa
Turkey | Ankara | lira | Turkish | -
Turkmenistan | Ashgabat | manat | Turkmen | Asia
Tuvalu | Funafuti | dollar | Tuvaluan | -
Uganda | Kampala | shilling | - | Africa
Ukraine | Kyiv | hryvnia | Ukrainian | Europe
the United Arab Emirates | Abu Dhabi | dirham | Arabic | Asia
the United Kingdom | London | pound | English | Europe
the United States | Washington | dollar | English | North America
Uruguay | Montevideo | peso | Spanish | South America
Uzbekistan | Tashkent | soum | Uzbek | Asia
Vanuatu | Port Vila | vatu | Bislama | -
Venezuela | Caracas | bolívar | Spanish | South America
Vietnam | Hanoi | dong | Vietnamese | Asia
Yemen | Sanaa | rial | Arabic | Asia
Zambia | Lusaka | kwacha | - | Africa
Zimbabwe | Harare | - | Shona | Africa
"""

# state of the United States | capital
STATES = """
Alabama | Montgomery
Alaska | Juneau
Arizona | Phoenix
Arkansas | Little Rock
California | Sacramento
Colorado | Denver
Connecticut | Hartford
Delaware | Dover
Florida | Tallahassee
Georgia | Atlanta
Hawaii | Honolulu
Idaho | Boise
Illinois | Springfield
Indiana | Indianapolis
Iowa | Des Moines
Kansas | Topeka
Kentucky | Frankfort
Louisiana | Baton Rouge
Maine | Augusta
Maryland | Annapolis
Massachusetts | Boston
Michigan | Lansing
Minnesota | Saint Paul
Mississippi | Jackson
Missouri | Jefferson City
Montana | Helena
Nebraska | Lincoln
Nevada | Carson City
New Hampshire | Concord
New Jersey | Trenton
New Mexico | Santa Fe
New York | Albany
North Carolina | Raleigh
North Dakota | Bismarck
Ohio | Columbus
Oklahoma | Oklahoma City
Oregon | Salem
Pennsylvania | Harrisburg
Rhode Island | Providence
South Carolina | Columbia
South Dakota | Pierre
Tennessee | Nashville
Texas | Austin
Utah | Salt Lake City
Vermont | Montpelier
Virginia | Richmond
Washington | Olympia
West Virginia | Charleston
Wisconsin | Madison
Wyoming | Cheyenne
"""

# landmark | city
LANDMARKS = """
the Acropolis | Athens
the Alhambra | Granada
the Atomium | Brussels
Belém Tower | Lisbon
Big Ben | London
the Brandenburg Gate | Berlin
the British Museum | London
Buckingham Palace | London
the Burj Khalifa | Dubai
Charles Bridge | Prague
Christ the Redeemer | Rio de Janeiro
the CN Tower | Toronto
the Colosseum | Rome
the Eiffel Tower | Paris
the Empire State Building | New York
Fisherman's Bastion | Budapest
the Forbidden City | Beijing
the Gateway Arch | St. Louis
the Gateway of India | Mumbai
the Golden Gate Bridge | San Francisco
Hagia Sophia | Istanbul
the Hermitage Museum | Saint Petersburg
Kinkaku-ji | Kyoto
La Scala | Milan
the Liberty Bell | Philadelphia
the Louvre | Paris
the Merlion | Singapore
the Petronas Towers | Kuala Lumpur
the Prado Museum | Madrid
Red Square | Moscow
the Rialto Bridge | Venice
the Rijksmuseum | Amsterdam
the Sagrada Família | Barcelona
Schönbrunn Palace | Vienna
Sensoji Temple | Tokyo
the Space Needle | Seattle
Table Mountain | Cape Town
the Taj Mahal | Agra
Topkapi Palace | Istanbul
the Uffizi Gallery | Florence
the Vasa Museum | Stockholm
Wawel Castle | Kraków
the Willis Tower | Chicago
"""
